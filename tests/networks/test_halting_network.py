"""Networks whose stages halt, against the papers' loops over images, positions and units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError
from sidestep.execution.execution import gathered, masked
from sidestep.execution.gather import run_chosen
from sidestep.execution.prepare import cast, prepare
from sidestep.fused.blocks import cheap_mean
from sidestep.layers.pool import averaging_by
from sidestep.layers.unit import Unit
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from tests import strategies
from tests.doubles import branch_rows, halting_network, shared_halting_network
from tests.reference import halting as reference
from tests.reference.macs import CountedMacs

preacts = st.booleans()
PREACT = pytest.mark.parametrize("preact", [True, False], ids=["preact", "postact"])
SPATIAL = pytest.mark.parametrize("spatial", [False, True], ids=["act", "sact"])
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def set_biases(network: HaltingNetwork, bias: float) -> HaltingNetwork:
    for name, parameter in network.router.named_parameters():  # type: ignore[union-attr]
        if name.endswith("score.bias"):
            nn.init.constant_(parameter, bias)
    return network


@given(preacts, strategies.seeds)
def test_act_equals_the_literal_loop_over_images(preact: bool, seed: int) -> None:
    network, images = shared_halting_network(preact=preact), strategies.images(3, seed)
    with torch.no_grad():
        output = network(images)
        literal = [reference.act_image(network, image) for image in images]
    for row, expected in enumerate(literal):
        torch.testing.assert_close(output.logits[row], expected["logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.ponder[row], expected["ponder"], rtol=1e-5, atol=1e-5)
        assert output.decisions.execution()[row].tolist() == expected["executed"]


@given(preacts, strategies.seeds)
def test_sact_equals_the_literal_loop_over_positions(preact: bool, seed: int) -> None:
    network, images = shared_halting_network(spatial=True, preact=preact), strategies.images(1, seed, size=4)
    with torch.no_grad():
        output, expected = network(images), reference.sact_image(network, images[0])
    torch.testing.assert_close(output.logits[0], expected["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.ponder[0], expected["ponder"], rtol=1e-5, atol=1e-5)
    shares = [(needed["conv1"] + needed["conv2"]) / 2 for needed in expected["positions"]]
    shares = [1.0 if index % 3 == 0 else share for index, share in enumerate(shares)]
    assert output.decisions.execution()[0].tolist() == pytest.approx(shares)


@SPATIAL
def test_gradients_equal_the_literal_ones(spatial: bool) -> None:
    literal = reference.sact_image if spatial else reference.act_image
    gradients: list[list[Tensor]] = []
    for ours in (True, False):
        torch.manual_seed(0)
        network, images = halting_network(spatial=spatial), strategies.images(2, 5, size=4)
        if ours:
            output = network(images)
            logits, ponder = output.logits, output.ponder
        else:
            results = [literal(network, image) for image in images]
            logits, ponder = (torch.stack([r[key] for r in results]) for key in ("logits", "ponder"))
        (logits.square().sum() + ponder.square().sum()).backward()
        gradients.append([torch.zeros(()) if p.grad is None else p.grad for p in network.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected.expand_as(actual), rtol=1e-3, atol=1e-4)


@SPATIAL
@PREACT
def test_scores_of_zero_run_everything_and_give_the_static_network(spatial: bool, preact: bool) -> None:
    network, images = halting_network(14, spatial=spatial, preact=preact), strategies.images(3, 0)
    set_biases(network, -1e4)
    output = network(images)
    torch.testing.assert_close(output.logits, network.backbone(images), rtol=1e-5, atol=1e-5)
    assert torch.equal(output.decisions.execution(), torch.ones(3, 6))
    assert output.ponder.tolist() == [[3.0, 3.0, 3.0]] * 3


@SPATIAL
@pytest.mark.parametrize("execute", [masked, gathered])
def test_scores_of_one_run_the_openers_alone(spatial: bool, execute: Any) -> None:
    network, images = set_biases(halting_network(spatial=spatial), 1e4), strategies.images(3, 0)
    x = network.backbone.stem(images)
    for opener in network.backbone.units[::3]:
        x = opener.execute(x)
    with torch.no_grad():
        output = network(images, execution=execute)
    torch.testing.assert_close(output.logits, network.backbone.head(x), rtol=1e-5, atol=1e-5)
    assert output.decisions.execution().tolist() == [[1.0, 0.0, 0.0] * 3] * 3
    assert output.ponder.tolist() == [[2.0, 2.0, 2.0]] * 3


@MODES
@SPATIAL
@given(preact=preacts, batch=strategies.batch_sizes, seed=strategies.seeds)
def test_gathered_equals_masked_and_images_that_have_halted_enter_no_branch(
    spatial: bool, mode: type, preact: bool, batch: int, seed: int
) -> None:
    network, images = shared_halting_network(spatial=spatial, preact=preact), strategies.images(batch, seed)
    before = images.clone()
    with mode():
        expected = network(images)
        with branch_rows(network.backbone) as rows:
            actual = network(images, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.ponder, expected.ponder, rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    assert torch.equal(actual.decisions.asked, expected.decisions.asked)
    assert rows == (expected.decisions.execution() > 0).sum(dim=0).tolist()
    assert torch.equal(images, before)


@SPATIAL
def test_lively_networks_halt_at_several_places(spatial: bool) -> None:
    execution = shared_halting_network(spatial=spatial)(strategies.images(64, 0)).decisions.execution()
    assert len(execution.unique(dim=0)) > 5
    assert bool((execution[:, ::3] == 1).all())
    assert bool((execution[:, 1:] <= execution[:, :-1])[:, [0, 1, 3, 4, 6, 7]].all())
    assert 0.3 < execution[:, 2].mean() < 0.7


def test_masked_execution_computes_every_unit_for_every_image() -> None:
    network = shared_halting_network()
    with torch.no_grad(), branch_rows(network.backbone) as rows:
        network(strategies.images(4, 0))
    assert rows == [4] * 9


@SPATIAL
def test_what_a_batch_that_has_halted_would_have_run_is_not_called(spatial: bool) -> None:
    network = set_biases(halting_network(spatial=spatial), 1e4)
    called: list[Unit] = []

    def recording(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        called.append(unit)
        assert weights.tolist() == [[0.0, 1.0]] * 4
        return run_chosen(unit, x, weights)

    asked: list[nn.Module] = []
    for unit in network.router.halting.values():  # type: ignore[union-attr]
        unit.register_forward_hook(lambda module, inputs, output: asked.append(module))
    with torch.no_grad():
        network(strategies.images(4, 0), execution=replace(gathered, run=recording))
    assert called == list(network.backbone.units[::3])
    assert len(asked) == 3


@given(preacts, st.booleans(), strategies.seeds)
def test_permuting_a_batch_permutes_outputs_and_costs(preact: bool, spatial: bool, seed: int) -> None:
    network, images = shared_halting_network(spatial=spatial, preact=preact), strategies.images(5, seed)
    order = torch.randperm(5, generator=strategies.generator(seed))
    with torch.no_grad():
        output, permuted = network(images), network(images[order], execution=gathered)
    torch.testing.assert_close(permuted.logits, output.logits[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.ponder, output.ponder[order], rtol=1e-4, atol=1e-5)
    assert torch.equal(permuted.decisions.weights, output.decisions.weights[order])


@SPATIAL
@PREACT
def test_a_training_step_reaches_every_parameter_and_draws_nothing(spatial: bool, preact: bool) -> None:
    network, images = halting_network(14, spatial=spatial, preact=preact).train(), strategies.images(8, 0)
    set_biases(network, -1.0)
    network.requires_grad_(True)
    output = network(images)
    (output.logits.square().sum() + output.ponder.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    scores = [p.grad for name, p in network.router.named_parameters() if "score" in name]
    assert all(grad.abs().sum() > 0 for grad in scores)
    assert torch.equal(network(images).logits, output.logits)


def test_the_ponder_cost_has_a_gradient_through_the_remainder_alone() -> None:
    network = set_biases(halting_network(14), -1.0)
    network(strategies.images(3, 0)).ponder[:, -1].sum().backward()
    score = network.router.halting["5"].score  # type: ignore[union-attr]
    assert score.bias.grad.item() < 0  # a larger score leaves a smaller remainder


def test_a_router_that_is_passed_in_decides_as_in_any_network() -> None:
    network, images = shared_halting_network(), strategies.images(3, 0)
    everything = ConstantRouter.keep([1.0] * 9)
    output = network(images, router=everything)
    expected = RoutedNetwork(network.backbone, everything)(images)
    assert torch.equal(output.logits, expected.logits)
    assert output.ponder is None
    assert output.decisions.asked is None


@pytest.mark.parametrize("execute", [masked, gathered])
@given(preact=preacts, batch=strategies.batch_sizes, seed=strategies.seeds)
def test_the_price_of_act_is_what_calls_count(execute: Any, preact: bool, batch: int, seed: int) -> None:
    network, images = shared_halting_network(preact=preact), strategies.images(batch, seed)
    cost = measure_cost(network, (8, 8))
    with torch.no_grad(), CountedMacs() as counted:
        decisions = network(images, execution=execute).decisions
    if execute is gathered:
        assert sum(counted.macs) == cost.per_sample(decisions).sum().item()
    else:
        assert sum(counted.macs) == batch * (cost.full + float(cost.routers.sum()))


@given(strategies.seeds)
def test_the_price_of_sact_is_that_of_the_positions_in_the_literal_loop(seed: int) -> None:
    network, images = shared_halting_network(spatial=True), strategies.images(1, seed, size=4)
    cost = measure_cost(network, (4, 4))
    with torch.no_grad():
        expected = reference.sact_image(network, images[0])["positions"]
        decisions = network(images).decisions
    macs = 3 * 16 * 9 * 16 + 640
    for index, needed in enumerate(expected):
        unit: Any = network.backbone.units[index]
        width, area = unit.conv2.out_channels, (16, 4, 1)[unit.stage]
        opens = index % 3 == 0
        conv1 = unit.conv1.weight.numel() * area * (1.0 if opens else needed["conv1"])
        macs += conv1 + unit.conv2.weight.numel() * area * (1.0 if opens else needed["conv2"])
        if index % 3 < 2:  # the unit behind this one is asked in front of the next
            macs += 9 * width * area * needed["conv2"] + width * (needed["conv2"] > 0)
    assert cost.per_sample(decisions).item() == pytest.approx(macs, rel=1e-6)


@SPATIAL
def test_halting_units_are_priced_as_routers(spatial: bool) -> None:
    routers = measure_cost(shared_halting_network(spatial=spatial), (8, 8)).routers
    per = [16, 32, 64]
    areas = [64, 16, 4]
    expected = [c * (9 * a + 1) if spatial else c for c, a in zip(per, areas, strict=True)]
    assert routers.tolist() == [price for e in expected for price in (0, e, e)]


@SPATIAL
def test_a_ponder_map_lies_under_the_pixels_and_has_the_ponder_costs_mean(spatial: bool) -> None:
    network, images = shared_halting_network(spatial=spatial), strategies.images(3, 0)
    with torch.no_grad():
        ponder_map, output = network.ponder_map(images), network(images)
    assert ponder_map.shape == (3, 8, 8)
    torch.testing.assert_close(ponder_map.mean(dim=(1, 2)), output.ponder.sum(dim=1))
    assert bool((ponder_map.flatten(1).std(dim=1) > 0.01).all()) == spatial


@SPATIAL
@PREACT
def test_a_prepared_network_computes_the_same(spatial: bool, preact: bool) -> None:
    network, images = shared_halting_network(spatial=spatial, preact=preact), strategies.images(4, 0)
    prepared = prepare(network, images[:1])
    expected, num_norms = network(images), len([m for m in prepared.modules() if "BatchNorm" in str(type(m))])
    assert num_norms < len([m for m in network.modules() if "BatchNorm" in str(type(m))])
    with torch.inference_mode():
        for execute in (masked, gathered):
            actual = prepared(images, execution=execute)
            torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(actual.ponder, expected.ponder, rtol=1e-4, atol=1e-4)
        low = cast(prepared, "bfloat16")(images.bfloat16(), execution=gathered)
    assert low.logits.dtype == torch.bfloat16
    assert low.decisions.weights.dtype == torch.float32


@SPATIAL
@PREACT
@pytest.mark.parametrize("execute", [masked, gathered])
def test_channels_last_is_kept(spatial: bool, preact: bool, execute: Any) -> None:
    network = halting_network(spatial=spatial, preact=preact).to(memory_format=torch.channels_last)
    images = strategies.images(6, 0, size=16).to(memory_format=torch.channels_last)
    kept: list[bool] = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for unit in network.backbone.units:
        unit.conv1.register_forward_pre_hook(check)
        unit.conv2.register_forward_pre_hook(check)
    with torch.inference_mode():
        network(images, execution=execute)
    assert kept
    assert all(kept)


@SPATIAL
@PREACT
def test_training_keeps_channels_last_in_the_backward_pass(spatial: bool, preact: bool) -> None:
    network = halting_network(spatial=spatial, preact=preact).to(memory_format=torch.channels_last).train()
    kept: list[bool] = []

    def check(gradient: Tensor) -> None:
        kept.append(gradient.is_contiguous(memory_format=torch.channels_last))

    for unit in network.backbone.units:
        unit.conv1.register_forward_hook(lambda module, inputs, output: output.register_hook(check) and None)
        unit.conv2.register_forward_hook(lambda module, inputs, output: output.register_hook(check) and None)
    images = strategies.images(6, 0, size=16).to(memory_format=torch.channels_last)
    with averaging_by(cheap_mean):
        output = network(images)
    (output.logits.square().sum() + output.ponder.sum()).backward()
    assert kept == [True] * 18


@SPATIAL
def test_autocast_keeps_scores_and_decisions_in_full_precision(spatial: bool) -> None:
    network, images = shared_halting_network(spatial=spatial), strategies.images(2, 0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images)
    assert output.logits.dtype == torch.bfloat16
    assert output.ponder.dtype == output.decisions.weights.dtype == torch.float32


def test_training_mode_is_refused_gathered() -> None:
    with pytest.raises(ExecutionError, match=r"training mode; call model.eval\(\) first"):
        halting_network(14).train()(strategies.images(2, 0), execution=gathered)
