"""Plans in PyTorch: images leave as the literal reader says, and nothing is computed for who skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidestep.plan.from_network import CRITERIA_OF_PLANS
from sidestep.targets.torch_plan import TorchPlan, leaves
from tests import strategies
from tests.plan.networks import network_of, plan_of
from tests.reference.plan import _leaves

THRESHOLDS = {"confidence": 0.5, "margin": 0.3, "entropy": 1.0, "patience": 2, "agreement": 1}


@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_images_leave_as_the_page_says(criterion: str) -> None:
    torch.manual_seed(2)
    logits = torch.randn(3, 40, 4) * 2
    logits[2, 0, 1] = torch.nan
    exit_: dict[str, Any] = {"criterion": criterion, "threshold": THRESHOLDS[criterion], "temperature": 1.3}
    named = logits.argmax(dim=2).T
    found = leaves(exit_, logits[2], named)
    literal = [
        _leaves(exit_ | {"logits": 1}, {1: logits[2, row]}, named[row].tolist()) for row in range(len(named))
    ]
    assert found.tolist() == literal
    assert 0 < sum(literal) < len(literal)


def test_every_criterion_of_plans_is_tested() -> None:
    assert set(CRITERIA_OF_PLANS) == THRESHOLDS.keys()


def test_nothing_is_computed_for_images_that_skip() -> None:
    plan = plan_of(network_of({"name": "rdi_net", "router": {"dim": 8}}, {"name": "cifar_resnet8"}))
    images = strategies.images(24, 5, size=16)
    counts: dict[int, int] = {}
    said = TorchPlan(plan, lambda op, values, out: counts.update({op["out"]: len(out)}))(images)
    units = [step for step in plan.steps if "choose" in step]
    ran = [counts.get(unit["options"][1]["ops"][0]["out"], 0) for unit in units]
    assert ran == (said.options == 1).sum(axis=0).tolist()
    assert 0 < sum(ran) < len(ran) * len(images)
