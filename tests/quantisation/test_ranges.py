"""Ranges that bytes cover, against searches by hand."""

from __future__ import annotations

import torch

from sidestep.plan.format import lists_of_ops
from sidestep.quantisation.byte_plan import made_on_bytes, spread_out
from sidestep.quantisation.ranges import Range, calibrated, groups_of, least_squares, percentile
from sidestep.targets.torch_plan import TorchPlan
from tests import strategies
from tests.plan.networks import network_of, plan_of

GATED = {"name": "rdi_net", "router": {"dim": 8}}


def histogram(numbers: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.histc(numbers, 2048, low, high).double()


def test_a_percentile_leaves_a_share_outside() -> None:
    numbers = torch.rand(100_000)
    numbers[:5] = 40.0
    found = percentile(Range(0.0, 40.0), histogram(numbers, 0.0, 40.0))
    assert found.low == 0 and 0.98 < found.high < 1.03
    both = torch.randn(100_000)
    found = percentile(Range(-6.0, 6.0), histogram(both, -6.0, 6.0))
    outside = ((both < found.low) | (both > found.high)).double().mean().item()
    assert 0.2e-4 < outside < 2e-4


def test_the_least_squared_error_is_that_of_rounding_numbers() -> None:
    """Literally: numbers are made bytes and back for every range."""
    torch.manual_seed(0)
    numbers = torch.randn(20_000).relu() ** 3
    seen = Range(0.0, numbers.max().item())

    def error(found: Range) -> float:
        back = found.grid.to_numbers(found.grid.to_bytes(numbers))
        return (back - numbers).square().mean().item()

    best = least_squares(seen, histogram(numbers, seen.low, seen.high))
    tried = [error(Range(0.0, part * seen.high)) for part in torch.linspace(0.2, 1, 81).tolist()]
    assert error(best) <= 1.05 * min(tried)
    assert best.high < seen.high


def test_images_count_where_they_go_alone() -> None:
    """The range of a unit follows from the images that it runs for, and the rule from what reads it."""
    plan = spread_out(plan_of(network_of(GATED, {"name": "cifar_resnet8"})))
    images = strategies.images(48, 3, size=16)
    made = made_on_bytes(plan.steps)
    found = calibrated(plan, made, [images[:24], images[24:]])
    unit = next(step for step in plan.steps if "choose" in step)
    inside = unit["options"][1]["ops"][0]
    options = torch.as_tensor(TorchPlan(plan)(images).options)[:, 0]
    assert 0 < options.sum() < len(options)
    seen: list[torch.Tensor] = []
    TorchPlan(plan, lambda op, values, out: seen.append(out) if op["out"] == inside["out"] else None)(images)
    assert len(seen[0]) == options.sum()
    grid = found.grids[inside["out"]]
    assert grid.zero == 0 and 0 < 255 * grid.scale <= seen[0].max() * 1.0001
    assert found.rules[found.groups[inside["out"]]] in ("max", "percentile", "squared error")


def test_what_a_skipped_unit_hands_on_has_the_grid_of_what_it_makes() -> None:
    plan = spread_out(plan_of(network_of(GATED, {"name": "cifar_resnet8"})))
    groups = groups_of(plan, made_on_bytes(plan.steps))
    for step in plan.steps:
        for option in step.get("options", ()):
            for value, result in zip(step["defines"], option["results"], strict=True):
                assert groups[value] == groups[result]
    inner = [step["options"][1]["ops"][0]["out"] for step in plan.steps if "choose" in step]
    assert len({groups[value] for value in inner}) == len(inner)
    assert sum(op["op"] == "conv" for ops in lists_of_ops(plan.steps) for op in ops) == 7
