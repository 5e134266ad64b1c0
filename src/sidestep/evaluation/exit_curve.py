"""Early exits on a set of images: what every exit says, and accuracy over cost, anytime and under budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.cost.latency_book import LatencyBook
from sidestep.errors import RecipeError
from sidestep.evaluation.calibration import calibration_errors, fit_temperatures
from sidestep.evaluation.goals import ExitGoal
from sidestep.evaluation.thresholds import ExitPoint, ExitTable, Family, thresholds_for_budget
from sidestep.routing.exit_rule import CRITERIA, ExitRule, scores
from sidestep.types import Batch, CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitSurvey:
    """What all exits of a network say about a set of images, everything computed.

    Attributes:
        exit_logits: (E, N, C) float32.
        labels: (N,) classes.
        macs: (E, N) MACs of every image that leaves there, in float64.
        ms: (E, N) its milliseconds by a latency book, or None without one.
    """

    exit_logits: Tensor
    labels: Tensor
    macs: Tensor
    ms: Tensor | None = None

    def every_second(self, first: int) -> ExitSurvey:
        """Return the same for every second image, from the first or the second one on."""
        return ExitSurvey(
            exit_logits=self.exit_logits[:, first::2],
            labels=self.labels[first::2],
            macs=self.macs[:, first::2],
            ms=None if self.ms is None else self.ms[:, first::2],
        )

    def table(self, criterion: str, temperatures: Sequence[float] | None) -> ExitTable:
        """Return the scores by a criterion, with what is right and what it costs."""
        return ExitTable(
            scores=scores(self.exit_logits, criterion, temperatures),
            correct=self.exit_logits.argmax(dim=2) == self.labels,
            macs=self.macs,
            ms=self.ms,
        )


def survey_exits(
    network: nn.Module,
    batches: Iterable[Batch],
    cost: CostModel,
    latency: LatencyBook | None = None,
    note: Callable[[RoutedOutput, Batch], None] | None = None,
) -> ExitSurvey:
    """Return what all exits say about the images of batches.

    The network is put in evaluation mode and left in the mode it came in.

    Args:
        network: the network, or what answers as one with early exits does.
        batches: normalised images with labels.
        cost: its price list.
        latency: its latency book, or None.
        note: is told what the network says about every batch, or None.
    """
    was_training = network.training
    network.eval()
    logits, labels, macs, ms = [], [], [], []
    with torch.inference_mode():
        for batch in batches:
            output = network(batch.images)
            assert output.exit_logits is not None  # masked execution of early exits returns them
            logits.append(output.exit_logits.float().cpu())
            labels.append(batch.labels.cpu())
            macs.append(cost.at_exits(output.decisions).double().T.cpu())
            if latency is not None:
                ms.append(latency.prices.at_exits(output.decisions).double().T.cpu())
            if note is not None:
                note(output, batch)
    network.train(was_training)
    # Clones: what inference mode made takes no part in fitting temperatures.
    return ExitSurvey(
        exit_logits=torch.cat(logits, dim=1).clone(),
        labels=torch.cat(labels).clone(),
        macs=torch.cat(macs, dim=1).clone(),
        ms=torch.cat(ms, dim=1).clone() if ms else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCalibration:
    """An exit rule that was solved on images which nothing is reported on, and what it does there.

    Attributes:
        budget_macs: largest mean MACs per image that were asked for; those that came out where accuracy was.
        criterion: of the scores.
        thresholds: (E - 1) of all exits but the last.
        temperatures: (E) by which logits are divided; all 1 without temperature scaling.
        calibration_errors: (E) expected calibration error with these temperatures.
        raw_calibration_errors: (E) the same without.
        accuracy: there, in [0, 1].
        macs: mean MACs per image there.
        exit_rates: (E) share of images that leave at every exit there.
        budget_ms: milliseconds that were asked for, if they were.
        ms: mean milliseconds per image there by a latency book, or None without one.
        asked: what routers are asked for that are given the budget, or None.
    """

    budget_macs: float
    criterion: str
    thresholds: list[float]
    temperatures: list[float]
    calibration_errors: list[float]
    raw_calibration_errors: list[float]
    accuracy: float
    macs: float
    exit_rates: list[float]
    budget_ms: float | None = None
    ms: float | None = None
    asked: float | None = None

    @property
    def rule(self) -> ExitRule:
        """Return the rule by which images leave."""
        return ExitRule(thresholds=self.thresholds, criterion=self.criterion, temperatures=self.temperatures)


def calibrate(
    survey: ExitSurvey, goal: ExitGoal, *, criterion: str = "confidence", scale: bool = True
) -> ExitCalibration:
    """Return the exit rule that meets a goal on a survey.

    Args:
        survey: of images that nothing is reported on (the validation split).
        goal: what is asked for.
        criterion: of the scores.
        scale: whether temperatures are fitted first.

    Raises:
        RecipeError: for a goal that no rule meets.
    """
    num_exits = len(survey.exit_logits)
    raw = [1.0] * num_exits
    # What tests a promise must not have made it: see `thresholds_for_risk`.
    fitted = survey if goal.risk is None else survey.every_second(0)
    temperatures = fit_temperatures(fitted.exit_logits, fitted.labels) if scale else raw
    table = survey.table(criterion, temperatures)
    thresholds = goal.thresholds(table, criterion)
    point = table.leaving(thresholds)
    return ExitCalibration(
        budget_macs=point.macs if goal.macs is None else goal.macs,
        criterion=criterion,
        thresholds=thresholds.tolist(),
        temperatures=temperatures,
        calibration_errors=calibration_errors(survey.exit_logits, survey.labels, temperatures),
        raw_calibration_errors=calibration_errors(survey.exit_logits, survey.labels, raw),
        accuracy=point.accuracy,
        macs=point.macs,
        exit_rates=point.exit_rates,
        budget_ms=goal.ms,
        ms=point.ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of a curve.

    Attributes:
        kind: "anytime", where all images leave at one exit, or "budgeted".
        budget_macs: what was asked for; None for anytime points.
        thresholds: (E - 1) that were solved for it; None for anytime points.
        point: what came out on the images that are reported on.
        asked: what routers are asked for that are given the budget, or None.
    """

    kind: str
    budget_macs: float | None
    thresholds: list[float] | None
    point: ExitPoint
    asked: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCurve:
    """Accuracy over cost of early exits, and how it was found.

    Attributes:
        criterion: of the scores.
        temperatures: (E), all 1 without temperature scaling.
        calibration_errors: (E) expected calibration error with them, on the images that are reported on.
        raw_calibration_errors: (E) the same without.
        full_macs: of the full network, all exits asked; the whole that fractions are of.
        points: anytime and budgeted ones.
    """

    criterion: str
    temperatures: list[float]
    calibration_errors: list[float]
    raw_calibration_errors: list[float]
    full_macs: float
    points: list[CurvePoint]

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as plain values, ready for JSON."""
        return asdict(self)


def check_curve(criterion: str, num_budgets: int) -> None:
    """Return if there can be a curve, before an image is looked at.

    Raises:
        RecipeError: for an unknown criterion, or a curve of one point.
    """
    if criterion not in CRITERIA:
        raise CRITERIA.unknown(criterion)
    if num_budgets < 2:
        raise RecipeError(f"num_budgets must be at least 2, got {num_budgets}; 20 draw a smooth curve")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyPair:
    """What all exits say, where a curve is solved and where it is reported.

    Attributes:
        solved_on: where thresholds and temperatures come from (the validation split).
        reported_on: where accuracy and cost are taken (the test split).
        asked: what routers were asked for that are given the budget, or None.
    """

    solved_on: ExitSurvey
    reported_on: ExitSurvey
    asked: float | None = None


def exit_curve(
    pairs: Sequence[SurveyPair], *, full_macs: float, criterion: str, scale: bool, num_budgets: int
) -> ExitCurve:
    """Return the anytime points of all exits, and the budgeted ones of evenly spaced budgets between them.

    Of several pairs every budget has the one that is the most accurate where it is solved; anytime points and
    errors of calibration are those of the last.

    Args:
        pairs: one, or those of rising budgets of routers.
        full_macs: of the full network.
        criterion: of the scores.
        scale: whether temperatures are fitted first.
        num_budgets: number of budgets, the cheapest and the dearest exit's cost included; at least 2.
    """
    check_curve(criterion, num_budgets)
    solvers = [_Solver.of(pair, criterion, scale) for pair in pairs]
    last, logits, labels = solvers[-1], pairs[-1].reported_on.exit_logits, pairs[-1].reported_on.labels
    points = [
        CurvePoint(kind="anytime", budget_macs=None, thresholds=None, point=point, asked=last.asked)
        for point in last.reporting.anytime()
    ]
    cheapest, dearest = (
        float(survey.macs.mean(dim=1)[exit])
        for survey, exit in ((pairs[0].solved_on, 0), (pairs[-1].solved_on, -1))
    )
    for budget in torch.linspace(cheapest, dearest, num_budgets, dtype=torch.float64).tolist():
        possible = [solver for solver in solvers if solver.smallest <= budget]
        best = max(possible, key=lambda solver: solver.accuracy(budget))
        thresholds = best.thresholds(budget)
        points.append(
            CurvePoint(
                kind="budgeted",
                budget_macs=budget,
                thresholds=thresholds.tolist(),
                point=best.reporting.leaving(thresholds),
                asked=best.asked,
            )
        )
    return ExitCurve(
        criterion=criterion,
        temperatures=last.temperatures,
        calibration_errors=calibration_errors(logits, labels, last.temperatures),
        raw_calibration_errors=calibration_errors(logits, labels, [1.0] * len(logits)),
        full_macs=full_macs,
        points=points,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solver:
    """Solves budgets on one pair of surveys; attributes as those of the pair and of curves."""

    solving: ExitTable
    family: Family
    reporting: ExitTable
    temperatures: list[float]
    criterion: str
    asked: float | None

    @classmethod
    def of(cls, pair: SurveyPair, criterion: str, scale: bool) -> _Solver:
        solved_on = pair.solved_on
        raw = [1.0] * len(solved_on.exit_logits)
        temperatures = fit_temperatures(solved_on.exit_logits, solved_on.labels) if scale else raw
        solving, reporting = (part.table(criterion, temperatures) for part in (solved_on, pair.reported_on))
        return cls(
            solving=solving,
            family=Family.of(solving.scores, criterion),
            reporting=reporting,
            temperatures=temperatures,
            criterion=criterion,
            asked=pair.asked,
        )

    @property
    def smallest(self) -> float:
        """Return the smallest budget, with which all images leave at the first exit."""
        return float(self.solving.macs.mean(dim=1)[0])

    def thresholds(self, budget: float) -> Tensor:
        """Return the (E - 1,) thresholds that meet a budget, or with which all leave at the last exit."""
        dearest = float(self.solving.macs.mean(dim=1)[-1])
        budget = min(budget, dearest)
        return thresholds_for_budget(self.solving, budget, self.criterion, family=self.family)

    def accuracy(self, budget: float) -> float:
        """Return the accuracy with them, where they are solved."""
        return self.solving.leaving(self.thresholds(budget)).accuracy
