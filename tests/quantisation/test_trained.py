"""Networks run as if on bytes, against the plans on bytes that are made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sidestep.execution.execution import masked
from sidestep.execution.on_bytes import OnBytes, byte_layout_from
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.from_network import export_with_maps
from sidestep.quantisation.sensitivity import Quantised
from sidestep.quantisation.trained import byte_layout, quantise_trained
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets.torch_plan import TorchPlan
from tests import strategies
from tests.doubles import shared_exit_network
from tests.marks import slow_where
from tests.plan.networks import SIZE, card_of, network_of
from tests.plan.test_network import CASES

STATIC = {
    "static": ({"name": "static"}, {"name": "cifar_resnet14"}),
    "static_projecting": ({"name": "static"}, {"name": "cifar_resnet14", "shortcut": "B"}),
    "static_preact": ({"name": "static"}, {"name": "cifar_preact_resnet14"}),
}
NETWORKS = STATIC | {name: CASES[name] for name in ("rdi_net", "preact", "squeeze_excite", "codinet")}
QUICK = ("static", "static_projecting", "rdi_net")
BATCHES = [strategies.images(24, seed, size=16) for seed in (0, 1)]


def trained(network: DynamicNetwork) -> OnBytes:
    """Return how a network is on bytes, with scales that a training could have left."""
    on_bytes = OnBytes(byte_layout(network, card_of(network), BATCHES))
    with torch.no_grad():
        for scale in on_bytes.parameters():
            scale *= 1.03
    return on_bytes


def quantised(network: DynamicNetwork, on_bytes: OnBytes, rule: ExitRule | None = None) -> Quantised:
    plan, maps = export_with_maps(network, card_of(network), rule)
    return quantise_trained(plan, network, maps, BATCHES, byte_layout_from(on_bytes.layout.as_dict()))


def assert_alike(network: DynamicNetwork, found: Quantised, on_bytes: OnBytes, *, most: float) -> None:
    """Compare a network on bytes with its plan; sums have another order, and with it a few bytes."""
    images = strategies.images(48, 9, size=16)
    with torch.no_grad():
        said = on_bytes.run(network, images, execution=masked)
        real = network(images)
    plan = TorchPlan(found.plan)(images)
    same = torch.ones(len(images), dtype=torch.bool)
    if said.decisions.weights.shape[1] and plan.options.shape[1]:
        same = (said.decisions.paths() == torch.as_tensor(plan.options)).all(dim=1)
    assert same.double().mean() >= 0.9
    off = (said.logits - torch.as_tensor(plan.logits))[same].square().mean().sqrt()
    rounding = (said.logits - real.logits)[same].square().mean().sqrt()
    assert off < most * rounding, (off, rounding)


@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK, NETWORKS))
def test_a_network_on_bytes_says_what_its_plan_says(name: str) -> None:
    network = network_of(*NETWORKS[name])
    on_bytes = trained(network)
    found = quantised(network, on_bytes)
    # The shortcut of the static first unit begins behind an activation that only the plan can round.
    assert_alike(network, found, on_bytes, most=1.0 if name == "static_preact" else 0.35)
    layout = on_bytes.layout
    candidates = [layer for layer in found.layers if layer.error is not None]
    assert sum(not layer.is_real for layer in candidates) == len(layout.weights) > 0.7 * len(candidates)
    # The ranges are those that were trained, and not those of a calibration.
    scales = torch.tensor([each.scale for each in layout.ranges])
    steps = [op for step in found.plan.steps for op in step.get("ops", ())]
    steps += [op for step in found.plan.steps for o in step.get("options", ()) for op in o["ops"]]
    for op in steps:
        if op["op"] == "conv" and "scale" in op:
            assert (scales - op["scale"]).abs().min() < 1e-7, op


@pytest.mark.parametrize("name", slow_where(lambda name: name != "msdnet_min", ("msdnet_min", "ranet")))
def test_networks_with_exits_do_too(name: str) -> None:
    network = shared_exit_network(name)
    classes = card_of(network).class_names[: network(BATCHES[0]).logits.shape[1]]
    card = replace(card_of(network), class_names=classes)
    on_bytes = OnBytes(byte_layout(network, card, BATCHES))
    plan, maps = export_with_maps(network, card, None)
    found = quantise_trained(plan, network, maps, BATCHES, on_bytes.layout)
    assert_alike(network, found, on_bytes, most=0.5)
    names = {name for name, _ in network.named_modules()}
    assert {point.name for each in on_bytes.layout.ranges for point in each.points} <= names


def test_nothing_of_the_network_changes_and_gradients_reach_all_of_it() -> None:
    network = network_of(*NETWORKS["static_projecting"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    on_bytes = trained(network)
    output = on_bytes.run(network, BATCHES[0], execution=masked)
    output.logits.square().sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for scale in on_bytes.parameters():
        assert scale.grad is not None and scale.grad.isfinite()


def test_layouts_become_plain_values_and_come_back() -> None:
    network = network_of(*NETWORKS["rdi_net"])
    layout = byte_layout(network, card_of(network, SIZE), BATCHES)
    again = byte_layout_from(layout.as_dict())
    assert again.as_dict() == layout.as_dict()
    without = again.without("router.")
    assert not any(name.startswith("router.") for name in without.weights)
    with pytest.raises(ValueError):
        byte_layout_from({"weights": [], "ranges": [{"scale": 0.0, "zero": 0, "points": []}]})
