"""Cascades as plans: the engine asks the members that masked PyTorch asks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import sidestep
from sidestep.networks.cascade_network import CascadeNetwork, Combine, MemberInput
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.exit_rule import ExitRule, scores
from tests.marks import slow_where
from tests.networks.test_cascade_network import INPUT, OTHER, SMALL, cascade, images, routed, static

engine = pytest.importorskip("sidestep_engine")


def card(network: torch.nn.Module) -> PlanCard:
    assert isinstance(network, DynamicNetwork)
    return PlanCard(
        input_size=(16, 16),
        mean=INPUT.mean,
        std=INPUT.std,
        class_names=tuple("abcdefg"),
        cost=sidestep.measure_cost(network, (16, 16)),
    )


WIDE = MemberInput(size=(16, 16), crop_share=1.0, interpolation="bicubic", mean=(0.2,) * 3, std=(0.2,) * 3)
NARROW = MemberInput(
    size=(9, 11), crop_share=0.8, interpolation="bicubic", mean=(0.4, 0.1, 0.2), std=(0.2, 0.1, 0.3)
)


def rule_of(exit_logits: Tensor, criterion: str) -> ExitRule:
    """Return a rule by which about half of the images leave at every exit."""
    if criterion in ("agreement", "patience"):
        return ExitRule(thresholds=[1.0 if criterion == "agreement" else 2.0] * 2, criterion=criterion)
    temperatures = [1.3, 0.8, 1.1]
    # Between two images, so that rounding moves none.
    thresholds = scores(exit_logits, criterion, temperatures)[:-1].quantile(0.5, dim=1).tolist()
    return ExitRule(thresholds=thresholds, criterion=criterion, temperatures=temperatures)


def agree(network: CascadeNetwork, criterion: str, version: int, size: tuple[int, int] = (16, 16)) -> None:
    """Let the engine and masked PyTorch decide about images."""
    x = images(side=size[0])[..., : size[1]]
    with torch.no_grad():
        everything = network(x).exit_logits
        assert everything is not None
        rule = rule_of(everything, criterion)
        expected = network(x, rule=rule)
    plan = export_plan(network, card(network), rule)
    assert plan.document["version"] == version
    assert plan.document["cost"]["static_macs"] == plan.document["cost"]["full_macs"]
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32")
    for count in (24, 1):
        output = loaded(x[:count].numpy())
        assert expected.decisions.exits is not None
        exits = expected.decisions.exits.argmax(dim=1).numpy()[:count]
        assert np.array_equal(output.exits, exits)
        assert np.allclose(output.logits, expected.logits.numpy()[:count], atol=1e-4)
    assert len(set(loaded(x.numpy()).exits.tolist())) >= 2


@pytest.mark.parametrize("combine", slow_where(lambda name: name == "last", ["last", "log_probs"]))
@pytest.mark.parametrize(
    "kinds",
    slow_where(lambda kinds: kinds[0] is static, [(static, static), (routed, static), (routed, routed)]),
)
@pytest.mark.parametrize("criterion", slow_where(lambda name: name == "margin", ["confidence", "margin"]))
def test_the_engine_decides_as_masked_pytorch(
    combine: Combine, kinds: tuple[Callable[..., RoutedNetwork], ...], criterion: str
) -> None:
    members = [make(depth, depth) for make, depth in zip(kinds, (8, 14), strict=True)]
    agree(cascade([*members, static(20, 3)], [OTHER, INPUT, OTHER], combine), criterion, version=1)


@pytest.mark.parametrize("combine", slow_where(lambda name: name == "last", ["last", "log_probs", "probs"]))
@pytest.mark.parametrize(
    "kinds", slow_where(lambda kinds: kinds[0] is static, [(static, static), (routed, static)])
)
@pytest.mark.parametrize(
    "inputs", slow_where(lambda inputs: inputs[0] == SMALL, [(SMALL, NARROW, INPUT), (NARROW, SMALL, WIDE)])
)
def test_members_see_pixels_of_their_own(
    combine: Combine, kinds: tuple[Callable[..., RoutedNetwork], ...], inputs: tuple[MemberInput, ...]
) -> None:
    """Smaller, cropped, resized bilinear or bicubic, normalised otherwise."""
    members = [make(depth, depth) for make, depth in zip(kinds, (8, 14), strict=True)]
    network = cascade([*members, static(20, 3)], list(inputs), combine)
    agree(network, "confidence", version=2)
    # Of another size than in training a member still sees the middle.
    if combine == "probs":
        agree(network, "confidence", version=2, size=(19, 17))


@pytest.mark.parametrize("criterion", ["agreement", "patience", "entropy"])
def test_every_criterion_decides_as_in_masked_pytorch(criterion: str) -> None:
    network = cascade([static(8, 1), static(8, 1), static(20, 3)], [NARROW, SMALL, OTHER], "last")
    agree(network, criterion, version=2)
