"""A run's network under a budget: of its exits, of routers that are given it, of both, or by a dial of gates.

A network with early exits keeps a budget by these, whatever its gates were trained for; routers that are
given the budget are asked for theirs beside exits. Gates that were trained for one budget get biases
(`routing.dial`) where nothing else can keep it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from sidestep.cost.latency_book import LatencyBook
from sidestep.data.image_set import shown_batches
from sidestep.data.split import Role
from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation.budget_points import (
    BudgetCalibration,
    BudgetCurve,
    BudgetPoint,
    asked_for,
    budget_curve,
    price_at,
    solve_budget,
)
from sidestep.evaluation.exit_curve import ExitCalibration, ExitSurvey, SurveyPair, survey_exits
from sidestep.evaluation.exit_curve import calibrate as solve_exits
from sidestep.evaluation.goals import ExitGoal
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.progress import through
from sidestep.routing.exit_rule import CRITERIA, ExitRule
from sidestep.runs.gate_budgets import check_gates, dial_of, point_of, report_by_halves
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import OpenedRun
from sidestep.types import Batch, CostModel

# Where thresholds and biases are solved: on the validation split, or on halves of the test split.
Calibration = Literal["val", "halves"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
# Images that a network was not trained on.
_SPLITS = ("test", "val")
# Of which an `ExitBudget` has one.
_BUDGETS = ("fraction", "gflops", "ms", "max_drop", "risk")
# Of the routers, among which the best is taken where exits have thresholds as well.
_NUM_ASKED = 7
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitBudget:
    """What a network may cost, and how its exits or gates are solved for that.

    Args:
        fraction: largest mean MACs per image, routers included, as a fraction of the full network's.
        gflops: the same in GFLOPs of 2 x MACs, instead.
        ms: largest mean milliseconds per image by a latency book, instead.
        max_drop: largest loss of accuracy against the last exit in points, instead; the cost follows.
        risk: largest probability that an early answer is wrong where the last exit's is right, instead, kept
            with `confidence`.
        confidence: of the risk.
        criterion: by which images leave, see `CRITERIA`: "confidence", "margin", "entropy", "patience" ...
        scale: whether the temperatures of the exits are fitted first.
        per_unit: whether gates that were trained for one budget have a bias for every unit, by the spread of
            what they say, instead of one for all.
    """

    fraction: float | None = None
    gflops: float | None = None
    ms: float | None = None
    max_drop: float | None = None
    risk: float | None = None
    confidence: float | None = None
    criterion: str = "confidence"
    scale: bool = True
    per_unit: bool = False

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _BUDGETS}
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) != 1:
            told = ", ".join(f"{name} {value}" for name, value in asked.items()) or "nothing"
            raise RecipeError(
                "budget must be given as a fraction of the full network, in GFLOPs, in ms, as max-drop or as "
                f"risk, one of them, got {told}"
            )
        for name, value in asked.items():
            if not math.isfinite(value):
                raise RecipeError(f"{name.replace('_', '-')} must be finite, got {value}")
        if self.risk is not None and not 0 < self.risk < 1:
            raise RecipeError(f"risk must be in (0, 1), got {self.risk}; 0.01 is one image of a hundred")
        if self.confidence is not None and (self.risk is None or not 0 < self.confidence < 1):
            raise RecipeError(f"confidence must be in (0, 1) and belongs to a risk, got {self.confidence}")
        if self.criterion not in CRITERIA:
            raise CRITERIA.unknown(self.criterion)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise RecipeError(
                f"budget must be a fraction of the full network's MACs in (0, 1], got {self.fraction}; "
                "budget-gflops takes GFLOPs"
            )
        if self.gflops is not None and not 0 < self.gflops < math.inf:
            raise RecipeError(f"budget-gflops must be above 0 and finite, got {self.gflops}")
        if self.ms is not None and not self.ms > 0:
            raise RecipeError(f"ms must be above 0, got {self.ms}")

    def goal(self, full_macs: float) -> ExitGoal:
        """Return what thresholds are solved for, given the MACs of the full network."""
        if self.risk is not None:
            return ExitGoal(risk=self.risk, confidence=self.confidence or 0.95)
        if self.ms is not None:
            return ExitGoal(ms=self.ms)
        if self.max_drop is not None:
            return ExitGoal(max_drop=self.max_drop)
        gflops = self.gflops
        return ExitGoal(macs=(self.fraction or 0.0) * full_macs if gflops is None else gflops * 1e9 / 2)


def batches_of(opened: OpenedRun, split: Role, source: str | None) -> Callable[[], Iterable[Batch]]:
    """Return what reads a run's images anew with every call, in batches.

    Raises:
        RecipeError: for a split that nothing is evaluated on, or an empty one.
    """
    if split not in _SPLITS:
        raise RecipeError(
            f"split must be one of {', '.join(_SPLITS)}, got {split!r}; nothing is chosen on them"
        )
    _log.info("reading split %s of %s", split, opened.data_from(source).source)
    data = data_of(opened, split, source)
    images = data.test if split == "test" else data.val
    if images is None:
        raise RecipeError(f"split {split!r} is empty in this run; val_fraction of its recipe is 0")
    _log.info("running the network on %s images", f"{len(images):,}")
    return partial(shown_batches, images, opened.input_size)


def surveys(
    opened: OpenedRun, split: Role, source: str | None, latency: LatencyBook | None = None
) -> dict[float | None, ExitSurvey]:
    """Return what a run's exits say about a split, by what its routers are asked for; None is no budget.

    Raises:
        ExecutionError: for a network without early exits.
    """
    if not opened.network.lets_leave:
        raise ExecutionError(
            "a budget of exits needs a network with early exits, got one without; train ranet or msdnet, or "
            "set model.exits"
        )
    batches = batches_of(opened, split, source)
    found: dict[float | None, ExitSurvey] = {}
    budgets: Sequence[float | None] = opened.budgets(_NUM_ASKED) or [None]
    for asked in through(budgets, "budgets of the routers", len(budgets)):
        if asked is not None:
            opened.ask(asked)
        found[asked] = survey_exits(opened.network, batches(), opened.cost, latency)
    return found


def solve(
    opened: OpenedRun, budget: ExitBudget, source: str | None, latency: LatencyBook | None = None
) -> ExitCalibration:
    """Return the exit rule that meets a budget on the validation split.

    A network for all budgets that has early exits gets the routers' budget with it that is the most accurate
    there, and has it from then on.

    Raises:
        RecipeError: for a budget that cannot be met.
    """
    found = surveys(opened, "val", source, latency)
    if len(found) > 1 and (budget.max_drop is not None or budget.risk is not None):
        raise RecipeError(
            "max-drop and risk know no budgets of routers, which this run has beside its exits; give budget, "
            "budget-gflops or ms"
        )
    check_no_dial(budget.per_unit)
    goal, solved, refused = budget.goal(opened.cost.full), [], []
    for asked, survey in found.items():
        try:
            one = solve_exits(survey, goal, criterion=budget.criterion, scale=budget.scale)
        except RecipeError as error:
            refused.append(error)
        else:
            solved.append(replace(one, asked=asked))
    if not solved:
        raise refused[0]
    best = max(solved, key=lambda one: (one.accuracy, -one.macs))
    if best.asked is not None:
        opened.ask(best.asked)
    return best


def settle(
    opened: OpenedRun, budget: ExitBudget | None, source: str | None, latency: LatencyBook | None = None
) -> ExitRule | None:
    """Return where images leave a run's network under a budget, and let its routers be asked for theirs.

    Without a budget it is what `calibrate` has left in the checkpoint. Exits and gates are solved on the
    validation split; routers that are given the budget keep to it by themselves, so that no image is looked
    at.

    Raises:
        SidestepError: for a budget that cannot be met.
    """
    if budget is None:
        return opened.exit_rule
    if opened.network.lets_leave:
        return solve(opened, budget, source, latency).rule
    if opened.given is None:
        solve_routers(opened, budget, source, latency)
        return None
    check_no_dial(budget.per_unit)
    wanted, prices = _wanted(opened, budget, latency)
    opened.ask(asked_for(opened.given, opened.cost, prices, wanted))
    return None


def solve_routers(
    opened: OpenedRun, budget: ExitBudget, source: str | None, latency: LatencyBook | None = None
) -> BudgetCalibration:
    """Return what the routers of a network are asked for to keep a budget on the validation split.

    They are asked for that from then on: those of a network for all budgets for one of theirs, gates that
    were trained for one budget by biases.

    Raises:
        RecipeError: for a budget that they cannot keep.
        ExecutionError: for a network without routers.
    """
    if opened.given is None:
        check_gates(opened)
    wanted, prices = _wanted(opened, budget, latency)
    timed, batches, biases = prices.unit == "ms", batches_of(opened, "val", source), None
    if opened.given is None:
        dial = dial_of(opened, batches, latency, timed=timed, per_unit=budget.per_unit)
        point = dial.meet(wanted)
        biases = dial.biases(point.asked)
        opened.turn(biases)
    else:
        check_no_dial(budget.per_unit)
        point = solve_budget(_measure(opened, batches, latency), opened.given.low, wanted, prices.unit)
        opened.ask(point.asked)
    return BudgetCalibration(
        budget_macs=None if timed else wanted,
        budget_ms=wanted if timed else None,
        point=point,
        biases=biases,
    )


def settled_by_halves(
    opened: OpenedRun, budget: ExitBudget, source: str | None, latency: LatencyBook | None
) -> Report:
    """Return the report on the test split of gates that are solved there, either half for the other.

    Raises:
        RecipeError: for a network that keeps budgets in another way, or a budget that cannot be kept.
    """
    check_gates(opened)
    if opened.given is not None or opened.network.lets_leave:
        raise RecipeError(
            "calibration must be val for a run with early exits or budgets.low, got halves, which gates for "
            "one budget have, and cascades"
        )
    wanted, prices = _wanted(opened, budget, latency)
    batches = batches_of(opened, "test", source)
    timed = prices.unit == "ms"
    return report_by_halves(opened, batches, wanted, latency, timed=timed, per_unit=budget.per_unit)


def curve_of_routers(
    opened: OpenedRun,
    budgets: Sequence[float],
    batches: Callable[[], Iterable[Batch]],
    latency: LatencyBook | None = None,
) -> BudgetCurve:
    """Return accuracy over cost of a network for all budgets.

    Args:
        opened: its run.
        budgets: of the routers, rising.
        batches: reads the images anew with every call.
        latency: its latency book, or None.
    """
    router, cost = opened.routers(), opened.cost
    macs = [price_at(asked, router, cost, cost) for asked in budgets]
    return budget_curve(_measure(opened, batches, latency), budgets, cost.full, macs)


def tenths(opened: OpenedRun) -> list[float]:
    """Return what routers are asked for at every tenth of the full MACs that they are trained for, rising."""
    router, cost = opened.routers(), opened.cost
    least = price_at(router.low, router, cost, cost) / cost.full
    fractions = [tenth / 10 for tenth in range(1, 11) if tenth / 10 >= least]
    return [asked_for(router, cost, cost, fraction * cost.full) for fraction in fractions]


def curve_of_exits(
    opened: OpenedRun, source: str | None, latency: LatencyBook | None = None
) -> list[SurveyPair]:
    """Return what exits say about both splits, for every budget that routers are asked for, if they are."""
    solved_on = surveys(opened, "val", source, latency)
    reported_on = surveys(opened, "test", source, latency)
    return [
        SurveyPair(asked=asked, solved_on=survey, reported_on=reported_on[asked])
        for asked, survey in solved_on.items()
    ]


def check_no_dial(per_unit: bool) -> None:
    """Refuse a setting of gates for one budget where there are none, or they are not what keeps it.

    Raises:
        RecipeError: naming it.
    """
    if per_unit:
        raise RecipeError(
            "per-unit has no effect on a network that keeps budgets by exits or by routers that are given "
            "them; drop it"
        )


def check_no_exits(criterion: str, scale: bool) -> None:
    """Refuse settings of exits where there are none.

    Raises:
        RecipeError: naming them.
    """
    if criterion != "confidence" or not scale:
        raise RecipeError(
            "criterion and no-temperatures have no effect on a network without early exits, got "
            f"{criterion}{'' if scale else ' without temperatures'}; drop them"
        )


def _wanted(opened: OpenedRun, budget: ExitBudget, latency: LatencyBook | None) -> tuple[float, CostModel]:
    """Return a budget of routers without exits as a mean price per image, and in which prices."""
    if budget.max_drop is not None or budget.risk is not None:
        raise RecipeError(
            "max-drop and risk are those of early exits, got a network without; give budget, budget-gflops "
            "or ms"
        )
    check_no_exits(budget.criterion, budget.scale)
    goal = budget.goal(opened.cost.full)
    if goal.ms is None:
        assert goal.macs is not None  # all others were refused
        return goal.macs, opened.cost
    assert latency is not None  # a budget in milliseconds comes with a latency book
    return goal.ms, latency.prices


def _measure(
    opened: OpenedRun, batches: Callable[[], Iterable[Batch]], latency: LatencyBook | None
) -> Callable[[float], BudgetPoint]:
    """Return what measures a network for all budgets on images, given what its routers are asked for."""
    num_classes = len(opened.class_names)

    def measure(asked: float) -> BudgetPoint:
        opened.ask(asked)
        report = evaluate_network(
            opened.network, batches(), opened.cost, num_classes=num_classes, latency=latency
        )
        return point_of(report, opened.cost, asked)

    return measure
