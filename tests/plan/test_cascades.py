"""Cascades as plans: the engine asks the members that masked PyTorch asks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import sidestep
from sidestep.errors import ExportError
from sidestep.networks.cascade_network import Combine
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.exit_rule import ExitRule, scores
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


@pytest.mark.parametrize("combine", ["last", "log_probs"])
@pytest.mark.parametrize("kinds", [(static, static), (routed, static), (routed, routed)])
@pytest.mark.parametrize("criterion", ["confidence", "margin"])
def test_the_engine_decides_as_masked_pytorch(
    combine: Combine, kinds: tuple[Callable[..., RoutedNetwork], ...], criterion: str
) -> None:
    members = [make(depth, depth) for make, depth in zip(kinds, (8, 14), strict=True)]
    network = cascade([*members, static(20, 3)], [OTHER, INPUT, OTHER], combine)
    with torch.no_grad():
        everything = network(images()).exit_logits
        assert everything is not None
        temperatures = [1.3, 0.8, 1.1]
        # Between two images, so that rounding moves none.
        thresholds = scores(everything, criterion, temperatures)[:-1].quantile(0.5, dim=1).tolist()
        rule = ExitRule(thresholds=thresholds, criterion=criterion, temperatures=temperatures)
        expected = network(images(), rule=rule)
    plan = export_plan(network, card(network), rule)
    assert plan.document["cost"]["static_macs"] == plan.document["cost"]["full_macs"]
    loaded = engine.Engine(engine.parse_plan(plan.as_bytes()), precision="float32")
    for count in (24, 1):
        output = loaded(images()[:count].numpy())
        assert expected.decisions.exits is not None
        exits = expected.decisions.exits.argmax(dim=1).numpy()[:count]
        assert np.array_equal(output.exits, exits)
        assert np.allclose(output.logits, expected.logits.numpy()[:count], atol=1e-4)
    assert len(set(loaded(images().numpy()).exits.tolist())) >= 2


@pytest.mark.parametrize(
    ("inputs", "combine", "message"),
    [([SMALL, INPUT], "log_probs", "and plans have no operation"), ([INPUT, INPUT], "probs", "no operation")],
)
def test_what_plans_cannot_say_yet_is_refused(inputs: list[object], combine: Combine, message: str) -> None:
    network = cascade([static(8), static(14)], inputs, combine)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=message):
        export_plan(network, card(network))
