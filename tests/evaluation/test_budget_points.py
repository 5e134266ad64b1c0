"""What routers are asked for a cost, by hand; budgets that are solved; curves."""

from __future__ import annotations

import pytest
import torch

from sidestep.errors import RecipeError
from sidestep.evaluation.budget_points import (
    BudgetPoint,
    asked_for,
    budget_curve,
    ends,
    price_at,
    solve_budget,
)
from sidestep.routing.budget_router import BudgetRouter, BudgetsConfig, BudgetScope
from sidestep.routing.gate import GateRouter
from sidestep.types import CostModel

# 20 fixed, units of 50 and 30 of which the first costs 5 when skipped, routers of 2 and 3: 30 to 105.
COST = CostModel(
    fixed=20.0, options=torch.tensor([[5.0, 50.0], [0.0, 30.0]]), routers=torch.tensor([2.0, 3.0])
)
# The same with exits, the last of which costs 7.
WITH_EXITS = CostModel(
    fixed=20.0,
    options=COST.options,
    routers=COST.routers,
    exits=torch.tensor([4.0, 7.0]),
    exit_units=torch.tensor([1, 2]),
)
TIMES = CostModel(
    fixed=1.0, options=torch.tensor([[0.0, 2.0], [0.0, 1.0]]), routers=torch.tensor([0.5, 0.5]), unit="ms"
)


def router(scope: BudgetScope = "unit", low: float = 0.4) -> BudgetRouter:
    return BudgetRouter(GateRouter([4, 4]), BudgetsConfig(low=low), asked=0.6, scope=scope)


def test_the_ends_of_prices_skip_everything_and_nothing() -> None:
    assert ends(COST) == (30.0, 105.0)
    assert ends(WITH_EXITS) == (37.0, 112.0)
    assert ends(TIMES) == (2.0, 5.0)


def test_shares_of_units_follow_from_the_price_list() -> None:
    assert asked_for(router(), COST, COST, 30 + 0.6 * 75) == pytest.approx(0.6)
    assert price_at(0.6, router(), COST, COST) == pytest.approx(75.0)
    assert asked_for(router(), COST, TIMES, 2 + 0.5 * 3) == pytest.approx(0.5)
    # More than the full network costs is the full network.
    assert asked_for(router(), COST, COST, 1000.0) == 1.0


def test_routers_that_know_macs_are_asked_for_macs() -> None:
    given = router("network", low=0.5)
    assert asked_for(given, COST, COST, 70.0) == pytest.approx(0.7)
    assert price_at(0.7, given, COST, COST) == pytest.approx(70.0)
    # 3.5 ms execute half of the units, which cost 67.5 MACs.
    assert asked_for(given, COST, TIMES, 3.5) == pytest.approx(0.675)
    # With routers the full network costs more than the whole that budgets are of.
    assert asked_for(given, COST, COST, 105.0) == 1.0


@pytest.mark.parametrize(
    ("scope", "prices", "budget", "message"),
    [
        ("unit", COST, 55.0, "at least 0.6000 of the full network's MACs, .* got 0.5500"),
        ("unit", TIMES, 3.0, "at least 3.2 ms, .* got 3 ms"),
        ("network", COST, 39.0, r"at least 0.4000 .* \(budgets.low 0.4\), got 0.3900"),
    ],
)
def test_budgets_below_the_smallest_are_refused(
    scope: BudgetScope, prices: CostModel, budget: float, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        asked_for(router(scope), COST, prices, budget)


def measured(asked: float) -> BudgetPoint:
    return BudgetPoint(asked=asked, accuracy=asked, macs=100 * asked**2, ms=asked)


def test_a_solved_budget_is_the_dearest_that_is_kept() -> None:
    point = solve_budget(measured, 0.4, 50.0, "MACs")
    assert point.macs <= 50 and point.asked == pytest.approx(0.5**0.5, abs=0.6 / 2**8)
    assert solve_budget(measured, 0.4, 0.75, "ms").asked == pytest.approx(0.75, abs=0.6 / 2**8)
    assert solve_budget(measured, 0.4, 100.0, "MACs").asked == 1
    assert solve_budget(measured, 0.4, 16.1, "MACs").asked == 0.4
    with pytest.raises(RecipeError, match=r"at least 16 MACs per image here, .* got 15"):
        solve_budget(measured, 0.4, 15.0, "MACs")


def test_a_curve_has_a_point_for_every_budget() -> None:
    curve = budget_curve(measured, [0.5, 1.0], 100.0, [20.0, 90.0])
    assert [point.macs for point in curve.points] == [25.0, 100.0]
    assert curve.as_dict()["points"][0]["asked"] == 0.5
