"""Plans of networks on bytes: near the real ones, read alike by the literal reader, real where it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep.plan.byte_maps import Grid, grids_of
from sidestep.plan.format import Plan, inputs_of, lists_of_ops, stands_for_real
from sidestep.quantisation.byte_plan import (
    Layout,
    byte_plan,
    made_on_bytes,
    quantised_weight,
    spread_out,
    table_of,
)
from sidestep.quantisation.changes import change_between
from sidestep.quantisation.plan_parts import parts_of
from sidestep.quantisation.ranges import calibrated
from sidestep.quantisation.sensitivity import Quantised, quantise
from sidestep.routing.exit_rule import ExitRule, scores
from sidestep.targets.torch_plan import TorchPlan
from tests import strategies
from tests.doubles import EXIT_NETWORKS, shared_exit_network
from tests.marks import slow_where
from tests.plan.networks import network_of, plan_of
from tests.plan.test_network import CASES
from tests.reference.plan import run_plan

QUICK = ("rdi_net", "squeeze_excite")


def batches(count: int = 1) -> list[Tensor]:
    return [strategies.images(24, seed, size=16) for seed in range(count)]


def quantised(plan: Plan) -> Quantised:
    return quantise(plan, batches())


def assert_near(plan: Plan, found: Quantised) -> None:
    """Compare a plan on bytes with the real one, and with what the literal reader makes of it."""
    images = strategies.images(24, 9, size=16)
    real, fast = TorchPlan(plan)(images), TorchPlan(found.plan)(images)
    assert change_between([real], [fast], num_exits=plan.num_exits).decisions <= 0.15
    # Untrained networks name classes by a hair, and their exits other ones.
    same = (real.options == fast.options).all(axis=1) & (real.exits == fast.exits)
    off = torch.as_tensor(fast.logits - real.logits)[torch.as_tensor(same)]
    assert same.mean() > 0.7 and off.square().mean().sqrt() < 0.1 * real.logits.std()
    assert found.plan.document["version"] == (5 if any(map(stands_for_real, ops_of(found.plan))) else 3)
    for row in range(2):
        logits, decisions, left = run_plan(found.plan.document, found.plan.tensors, images[row])
        reached = [option for option in fast.options[row].tolist() if option >= 0]
        assert (reached, int(fast.exits[row])) == (decisions, left)
        # Of real values the order of sums differs, and with it now and then a byte.
        assert (logits - torch.as_tensor(fast.logits[row])).abs().max() < 0.03 * logits.abs().max()


@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK, CASES))
def test_networks_that_skip_say_nearly_the_same_on_bytes(name: str) -> None:
    plan = plan_of(network_of(*CASES[name]))
    found = quantised(plan)
    assert_near(plan, found)
    convolutions = [layer for layer in found.layers if plan.tensors[layer.name].dim() == 4]
    # Numbers of untrained networks lie close together, and a few layers may stay real for that.
    assert sum(not layer.is_real for layer in convolutions) > len(convolutions) / 2
    assert any(op["op"] == "conv" and "weight_scale" in op for op in ops_of(found.plan))


def test_weights_of_layers_that_stay_real_are_int8_and_those_of_small_ones_float32() -> None:
    plan = plan_of(network_of(*CASES["rdi_net"]))
    found = quantised(plan).plan
    layers = [op for op in ops_of(found) if op["op"] in ("conv", "linear")]
    real = [op for op in layers if "scale" not in op and "in_scale" not in op]
    held = {op["weight"]: found.tensors[op["weight"]].dtype == torch.int8 for op in real}
    assert set(held.values()) == {True, False} and found.document["version"] == 5
    for op in real:
        weight = plan.tensors[op["weight"].removesuffix(".int8")]
        assert held[op["weight"]] == (weight.numel() >= 512 and weight[0].numel() >= 8)
        if held[op["weight"]]:
            scale = found.tensors[op["weight_scale"]].view(-1, *[1] * (weight.dim() - 1))
            off = (found.tensors[op["weight"]] * scale - weight).abs()
            assert (off <= 0.5001 * scale).all() and off.max() > 0


@pytest.mark.parametrize("name", slow_where(lambda name: name != "msdnet", EXIT_NETWORKS))
def test_networks_with_exits_say_nearly_the_same_on_bytes(name: str) -> None:
    network = shared_exit_network(name)
    with torch.no_grad():
        everything = network(strategies.images(24, 9, size=16)).exit_logits
    assert everything is not None
    found = scores(everything, "confidence", [1.0] * len(everything))[:-1].sort(dim=1).values[:, 6:-6]
    # In the widest gap, where bytes move no image across.
    place = found.diff(dim=1).argmax(dim=1, keepdim=True)
    thresholds = (found.gather(1, place) + found.gather(1, place + 1))[:, 0] / 2
    plan = plan_of(network, rule=ExitRule(thresholds=thresholds.tolist(), criterion="confidence"))
    assert_near(plan, quantised(plan))


def ops_of(plan: Plan) -> list[dict[str, Any]]:
    return [op for ops in lists_of_ops(plan.steps) for op in ops]


def test_a_skipped_unit_does_nothing_on_bytes_either() -> None:
    found = quantised(plan_of(network_of(*CASES["rdi_net"])))
    skipping = [step["options"][0]["ops"] for step in found.plan.steps if "choose" in step]
    assert all(op["op"] == "pad" for ops in skipping for op in ops)
    assert [] in skipping


def test_weights_take_a_quarter_of_the_room() -> None:
    plan = plan_of(network_of({"name": "static"}, {"name": "cifar_resnet20"}))
    real = spread_out(plan)
    made = made_on_bytes(real.steps)
    found = byte_plan(real, Layout(made=made, grids=calibrated(real, made, batches(1)).grids))
    sizes = [sum(t.numel() * t.element_size() for t in each.tensors.values()) for each in (plan, found)]
    assert sizes[1] < 0.275 * sizes[0]


def test_weights_are_rounded_by_channel() -> None:
    weight = torch.randn(5, 3, 3, 3)
    weight[2] *= 100
    weight[4] = 0
    steps, scale = quantised_weight(weight)
    assert steps.abs().amax(dim=(1, 2, 3)).tolist() == [127] * 4 + [0]
    off = (steps * scale.view(-1, 1, 1, 1) - weight).abs().amax(dim=(1, 2, 3))
    assert (off <= scale / 2 * 1.001).all()


def test_a_table_is_the_activation_of_every_byte() -> None:
    inner, grid = Grid(0.05, 100), Grid(0.03, 10)
    table = table_of({"activation": "silu"}, inner, grid)
    for byte in range(256):
        x = 0.05 * (byte - 100)
        wanted = x / (1 + torch.exp(torch.tensor(-x, dtype=torch.float64))).item() / 0.03 + 10
        assert table[byte] == min(max(round(wanted), 0), 255)


def test_activations_with_tables_end_convolutions() -> None:
    plan = plan_of(network_of({"name": "static"}, {"name": "cifar_resnet8"}))
    for op in ops_of(plan):
        if op["op"] == "conv":
            op.update(relu=False, activation="silu")
    found = quantised(plan)
    assert_near(plan, found)
    convolutions = [op for op in ops_of(found.plan) if op["op"] == "conv"]
    assert all("table" in op and op["activation"] == "silu" for op in convolutions if "scale" in op)
    assert sum("scale" in op for op in convolutions) >= len(convolutions) - 1
    assert "activate" not in {op["op"] for op in ops_of(found.plan)}
    assert len(ops_of(spread_out(plan))) == len(ops_of(plan)) + len(convolutions)


def test_a_layer_that_bytes_would_ruin_stays_real() -> None:
    """One channel a thousand times as large as the others leaves these no bytes."""
    plan = plan_of(network_of({"name": "static"}, {"name": "cifar_resnet14"}))
    convolutions = [op for op in ops_of(plan) if op["op"] == "conv"]
    # The two of the first block.
    first, second = convolutions[1:3]
    plan.tensors[first["weight"]] = plan.tensors[first["weight"]].clone()
    plan.tensors[first["weight"]][0] *= 1000
    plan.tensors[first["bias"]] = plan.tensors[first["bias"]].clone()
    plan.tensors[first["bias"]][0] = plan.tensors[first["bias"]][0] * 1000 + 100
    plan.tensors[second["weight"]] = plan.tensors[second["weight"]].clone()
    plan.tensors[second["weight"]][:, 0] /= 1e5
    layers = {layer.name: layer for layer in quantised(plan).layers}
    assert layers[second["weight"]].is_real and layers[first["weight"]].is_real
    assert sum(not layer.is_real for layer in layers.values()) > len(layers) / 2


def test_units_that_no_image_chooses_are_on_bytes_too() -> None:
    """In the ranges that they would have if all images did."""
    skipped, whole = (
        plan_of(network_of({"name": "fixed_path", "path": path}, {"name": "cifar_resnet8"}))
        for path in ("1 0 1", "1 1 1")
    )
    images = batches(1)
    found = quantise(skipped, images)
    assert_near(skipped, found)
    never = [op for step in skipped.steps if "choose" in step for op in step["options"][1]["ops"]]
    reached: set[int] = set()
    TorchPlan(skipped, lambda op, values, out: reached.add(op["out"]))(images[0])
    unseen = {op["weight"] for op in never if op["op"] == "conv" and op["out"] not in reached}
    layers = {layer.name: layer for layer in found.layers}
    assert unseen and all(layers[name].error is None and not layers[name].is_real for name in unseen)
    inside = {op["weight"] for op in never if op.get("weight") in unseen and op["residual"] is None}
    found_in, wanted = (grids_by_weight(plan, images) for plan in (skipped, whole))
    assert inside and all(found_in[name] == wanted[name] for name in inside)


def grids_by_weight(plan: Plan, images: list[Tensor]) -> dict[str, Grid]:
    """Return the grids of what convolutions make."""
    plan = spread_out(plan)
    grids = calibrated(plan, made_on_bytes(plan.steps), images).grids
    return {op["weight"]: grids[op["out"]] for op in ops_of(plan) if op["op"] == "conv"}


def test_parts_are_what_reads_them() -> None:
    plan = plan_of(network_of({"name": "blockdrop"}, {"name": "cifar_resnet14"}))
    names = {op["out"]: op["weight"] for op in ops_of(plan) if op["op"] in ("conv", "linear")}
    parts = {names[out]: part for out, part in parts_of(plan).items() if out in names}
    first = [name for name, part in parts.items() if part == "first convolution"]
    assert len(first) == 2 and any(name.startswith("router") for name in first)
    assert all(
        (part == "routers") == name.startswith("router") for name, part in parts.items() if name not in first
    )
    assert [name for name, part in parts.items() if part == "head"] == ["backbone.fc.weight"]


def test_values_of_one_choice_have_one_grid() -> None:
    plan = quantised(plan_of(network_of(*CASES["three_options"]))).plan
    grids = grids_of(plan.steps)
    for step in plan.steps:
        for option in step.get("options", ()):
            assert [grids[value] for value in option["results"]] == [
                grids[value] for value in step["defines"]
            ]
    for op in ops_of(plan):
        if op["op"] == "concat":
            assert len({grids.get(value) for value in inputs_of(op)}) == 1
