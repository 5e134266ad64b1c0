"""Runs whose gates were trained for one budget, set to others: biases solved on images, kept in the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from sidestep.cost.latency_book import LatencyBook
from sidestep.errors import ExecutionError
from sidestep.evaluation.budget_points import BudgetCurve, BudgetPoint
from sidestep.evaluation.gate_dial import GateDial, GateSurvey, Logits
from sidestep.evaluation.report import Report, Seen, evaluate_network, report_of
from sidestep.execution.execution import gathered
from sidestep.progress import through
from sidestep.routing.dial import DialLevel, Frontier
from sidestep.runs.run_folder import OpenedRun
from sidestep.types import Batch, CostModel

Batches = Callable[[], Iterable[Batch]]


def dial_of(
    opened: OpenedRun, batches: Batches, latency: LatencyBook | None, *, timed: bool, per_unit: bool
) -> GateDial:
    """Return what solves budgets of a run's gates on images.

    Args:
        opened: the run.
        batches: reads the images anew with every call.
        latency: its latency book, or None.
        timed: whether budgets are in milliseconds of that book.
        per_unit: whether every unit has a bias of its own, by the spread of its gate.

    Raises:
        ExecutionError: for a network without gates.
    """
    check_gates(opened)
    prices = opened.cost
    if timed:
        assert latency is not None  # a budget in milliseconds comes with a latency book
        prices = latency.prices

    def measure(biases: Sequence[float], asked: float) -> GateSurvey:
        return survey_gates(opened, batches, latency, biases, asked)

    return GateDial(measure, prices, per_unit=per_unit)


def check_gates(opened: OpenedRun) -> None:
    """Refuse a network that decides about no units.

    Raises:
        ExecutionError: saying which networks have budgets.
    """
    if opened.network.router is None:
        raise ExecutionError(
            "a budget needs a network that decides for every image, by early exits, gates or routers, got a "
            "static one; train a method such as rdi_net, or set model.exits"
        )
    if not opened.network.chooses_options:
        raise ExecutionError(
            "a budget needs gates that choose between options, got a network that halts: scores of act and "
            "sact weigh outputs too, which a bias would change; train with another tau"
        )


def survey_gates(
    opened: OpenedRun, batches: Batches, latency: LatencyBook | None, biases: Sequence[float], asked: float
) -> GateSurvey:
    """Return what a run's gates do on images with biases, which they have from then on.

    Blocks that are skipped are not computed: gates are asked for every image all the same.
    """
    opened.turn(biases)
    logits = Logits()
    report = evaluate_network(
        opened.network,
        batches(),
        opened.cost,
        num_classes=len(opened.class_names),
        execution=gathered,
        latency=latency,
        per_image=logits,
    )
    return GateSurvey(point=point_of(report, opened.cost, asked), logits=logits.all())


def point_of(report: Report, cost: CostModel, asked: float) -> BudgetPoint:
    """Return a report as the point of a curve, given what was asked for."""
    return BudgetPoint(
        asked=asked,
        accuracy=report.accuracy,
        macs=report.fraction_of_full * cost.full,
        ms=report.latency_ms,
        image_bits=report.image_bits,
        class_bits=report.class_bits,
    )


def curve_of_gates(
    opened: OpenedRun,
    solved_on: Batches,
    reported_on: Batches,
    latency: LatencyBook | None,
    *,
    num_budgets: int,
    per_unit: bool,
) -> tuple[BudgetCurve, Frontier]:
    """Return accuracy over cost of a run's gates, and the budgets that are worth being kept.

    Args:
        opened: the run.
        solved_on: images that biases are solved on, read anew with every call.
        reported_on: those of the curve's points.
        latency: its latency book, or None.
        num_budgets: from everything skipped that can be, to everything executed.
        per_unit: as `dial_of`.
    """
    dial = dial_of(opened, solved_on, latency, timed=False, per_unit=per_unit)
    budgets = dial.evenly(num_budgets)
    # Reported in one go: the network has other biases while a budget is solved.
    solved = [dial.meet(budget) for budget in through(budgets, "solving budgets", len(budgets))]
    points, levels = [], list[DialLevel]()
    for one in through(solved, "reporting budgets", len(solved)):
        biases = dial.biases(one.asked)
        point = survey_gates(opened, reported_on, latency, biases, one.asked).point
        points.append(point)
        if not levels or one.macs > levels[-1].macs:
            levels.append(DialLevel(macs=one.macs, accuracy=point.accuracy, biases=biases))
    curve = BudgetCurve(full_macs=opened.cost.full, budgets_macs=budgets, points=points, by_dial=True)
    return curve, Frontier(full_macs=opened.cost.full, levels=levels)


def report_by_halves(
    opened: OpenedRun,
    batches: Batches,
    budget: float,
    latency: LatencyBook | None,
    *,
    timed: bool,
    per_unit: bool,
) -> Report:
    """Return the report of images of which either half has the biases that were solved on the other.

    Args:
        opened: the run.
        batches: reads the images anew with every call.
        budget: mean price per image.
        latency: its latency book, or None.
        timed: whether the budget is in milliseconds of that book.
        per_unit: as `dial_of`.
    """
    seen = Seen()
    for half in (0, 1):
        solving, reporting = (_every_second(batches, first) for first in (half, 1 - half))
        dial = dial_of(opened, solving, latency, timed=timed, per_unit=per_unit)
        opened.turn(dial.biases(dial.meet(budget).asked))
        with torch.inference_mode():
            for batch in reporting():
                seen.add(opened.network(batch.images), batch.labels, opened.cost)
    return report_of(
        seen,
        opened.cost,
        num_classes=len(opened.class_names),
        execution="masked",
        decisions="argmax",
        latency=latency,
    )


def _every_second(batches: Batches, first: int) -> Batches:
    """Return what reads every second image, from the first or the second one on."""

    def read() -> Iterable[Batch]:
        seen = 0
        for batch in batches():
            rows = slice((first - seen) % 2, None, 2)
            seen += len(batch.labels)
            yield replace(batch, images=batch.images[rows], labels=batch.labels[rows], statistics=None)

    return read
