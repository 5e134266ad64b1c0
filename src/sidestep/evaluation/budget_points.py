"""Networks for all budgets: what routers are asked for a cost, solved on images, and accuracy over cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sidestep.errors import RecipeError
from sidestep.progress import through
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.types import CostModel, Decisions, Unit

_BISECTIONS = 8
# Of a path about its image: where there are no more, gates tell images hardly apart.
FEW_BITS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """What a network does on a set of images when its routers are asked for a budget.

    Attributes:
        asked: the routers' budget, of units or MACs as they were trained; of gates with a dial the bias.
        accuracy: top-1, in [0, 1].
        macs: mean MACs per image, routers included.
        ms: mean milliseconds per image by a latency book, or None without one.
        image_bits: mutual information of path and image in bits, or None where nobody has counted.
        class_bits: that of path and class, less what chance would say, or None likewise.
    """

    asked: float
    accuracy: float
    macs: float
    ms: float | None = None
    image_bits: float | None = None
    class_bits: float | None = None

    def price(self, unit: Unit) -> float:
        """Return the mean cost in a unit; milliseconds come with a latency book."""
        found = self.macs if unit == "MACs" else self.ms
        assert found is not None  # a budget in milliseconds comes with a latency book
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCalibration:
    """What routers are asked for so that a budget is kept on images that nothing is reported on.

    Attributes:
        budget_macs: largest mean MACs per image that were asked for, or None for milliseconds.
        budget_ms: the same in milliseconds, or None.
        point: what comes out there.
        biases: (L) of all units, of gates with a dial; None where routers are given the budget.
    """

    budget_macs: float | None
    budget_ms: float | None
    point: BudgetPoint
    biases: list[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCurve:
    """Accuracy over cost of one network at many budgets.

    Attributes:
        full_macs: of the full network.
        budgets_macs: MACs that every point should have: by the routers' budget alone, or those for which the
            dial of gates was solved.
        points: cheapest first.
        by_dial: whether gates that were trained for one budget have a bias, see `routing.dial`.
    """

    full_macs: float
    budgets_macs: list[float]
    points: list[BudgetPoint]
    by_dial: bool = False

    def depth_sentence(self) -> str | None:
        """Return that the curve is one over depth, as the function below does."""
        counted = [p for p in self.points if p.image_bits is not None and p.class_bits is not None]
        return depth_sentence([p.image_bits or 0.0 for p in counted], [p.class_bits or 0.0 for p in counted])

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as plain values, ready for JSON."""
        return asdict(self)


def depth_sentence(image_bits: Sequence[float], class_bits: Sequence[float]) -> str | None:
    """Return that budgets change the depth for all images alike, where paths say next to nothing of images.

    That is where gates have collapsed: at no budget is there more information than in two paths that are
    equally likely.

    Args:
        image_bits: mutual information of path and image at every budget that was counted.
        class_bits: that of path and class.
    """
    if not image_bits or max(image_bits) > FEW_BITS:
        return None
    return (
        f"this is a dial over depth, not over images: paths have at most {max(image_bits):.2f} bits about an "
        f"image and {max(class_bits):.2f} about its class, so that gates treat nearly all images alike"
    )


def asked_for(router: BudgetedRouter, cost: CostModel, prices: CostModel, budget: float) -> float:
    """Return what a router is asked for so that images cost a budget on average, if it keeps to that.

    Args:
        router: for all budgets.
        cost: price list of its network in MACs.
        prices: in which the budget is, the same or a latency book's.
        budget: mean price per image; above that of all units all are executed.

    Raises:
        RecipeError: for a budget below those that it was trained for.
    """
    none, every = ends(prices)
    rate = min((budget - none) / (every - none), 1.0)
    least = _rate_of(router.low, router, cost)
    # A budget that a report has printed is a rounded one.
    if rate < least - 1e-3:
        smallest = none + least * (every - none)
        raise RecipeError(
            f"budget must be at least {_said(smallest, prices)}, the smallest that the network was trained "
            f"for (budgets.low {router.low}), got {_said(budget, prices)}"
        )
    return min(max(_asked_at(rate, router, cost), router.low), 1.0)


def price_at(asked: float, router: BudgetedRouter, cost: CostModel, prices: CostModel) -> float:
    """Return the mean price of images when a router keeps to what it is asked for; arguments as above."""
    none, every = ends(prices)
    return none + _rate_of(asked, router, cost) * (every - none)


def ends(prices: CostModel) -> tuple[float, float]:
    """Return the price of an image that executes no unit, and of one that executes all."""
    options = torch.eye(2).unsqueeze(1).expand(-1, len(prices.options), -1)
    none, every = prices.per_sample(Decisions(weights=options)).tolist()
    return none, every


def solve_budget(
    measure: Callable[[float], BudgetPoint], low: float, budget: float, unit: Unit
) -> BudgetPoint:
    """Return the point of the largest routers' budget that costs no more than a budget.

    Args:
        measure: what routers are asked for -> what comes out, dearer with more.
        low: smallest that they were trained for.
        budget: mean cost per image.
        unit: of the budget.

    Raises:
        RecipeError: for a budget that even the smallest one does not keep.
    """
    best = measure(low)
    if best.price(unit) > budget:
        raise RecipeError(
            f"budget must be at least {best.price(unit):.4g} {unit} per image here, which the smallest one "
            f"costs that the network was trained for, got {budget:.4g}"
        )
    dearest = measure(1.0)
    if dearest.price(unit) <= budget:
        return dearest
    lower, upper = low, 1.0
    for _ in range(_BISECTIONS):
        point = measure((lower + upper) / 2)
        if point.price(unit) > budget:
            upper = point.asked
        else:
            lower, best = point.asked, point
    return best


def budget_curve(
    measure: Callable[[float], BudgetPoint], budgets: Sequence[float], full_macs: float, macs: Sequence[float]
) -> BudgetCurve:
    """Return accuracy over cost.

    Args:
        measure: what routers are asked for -> what comes out.
        budgets: of the routers, rising.
        full_macs: of the full network.
        macs: that every budget should cost.
    """
    points = [measure(asked) for asked in through(budgets, "budgets", len(budgets))]
    return BudgetCurve(full_macs=full_macs, budgets_macs=list(macs), points=points)


def _rate_of(asked: float, router: BudgetedRouter, cost: CostModel) -> float:
    """Return the mean execution rate of what a router is asked for."""
    if router.scope == "unit":
        return asked
    none, every = ends(cost)
    return (asked * cost.full - none) / (every - none)


def _asked_at(rate: float, router: BudgetedRouter, cost: CostModel) -> float:
    if router.scope == "unit":
        return rate
    none, every = ends(cost)
    return (none + rate * (every - none)) / cost.full


def _said(price: float, prices: CostModel) -> str:
    if prices.unit == "ms":
        return f"{price:.4g} ms"
    return f"{price / prices.full:.4f} of the full network's MACs"
