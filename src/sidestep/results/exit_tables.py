"""Early exits on results pages: accuracy of every exit and under budgets, and what equal accuracy costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import floor

from sidestep.evaluation.exit_curve import CurvePoint
from sidestep.evaluation.thresholds import ExitPoint
from sidestep.results.kept_curve import KeptCurve
from sidestep.results.markdown import table
from sidestep.results.run_result import HALVES, RunResult

# Below the best accuracy of a page, in points.
_STEPS_DOWN = (0.0, 0.5, 1.0, 2.0, 4.0)
_HALVES = " Its row: thresholds solved on either half of the test split, and reported on the other."

_WHAT = """Thresholds and temperatures are solved on the validation split; accuracy and cost are the test
split's. Costs are means over images, exits and routers in; fractions are of the run's own full network, all
exits asked. Networks without exits stand beside them with their one point; the file beside this page has all
figures."""
_BY_LOT = """In brackets is the best that anytime exits reach at the same mean cost, when a lot sends every
image to one of two exits."""
_AT_EQUAL = """The smallest mean cost at which a run is so accurate, in GFLOPs and as a fraction of its own
full network, read off the curves above (between two budgets, off the line that joins them)."""

Points = Sequence[tuple[float, float]]


def exit_sections(results: Sequence[RunResult]) -> list[str]:
    """Return the lines of a page about early exits, none if no run has any.

    Args:
        results: of the page, in the order of its rows.
    """
    if not any(result.has_exits for result in results):
        return []
    curves = [
        ("### Anytime: all images leave at one exit", _anytime(results)),
        (
            "### Under a budget: every image leaves where it is certain enough",
            [*_BY_LOT.splitlines(), "", *_budgeted(results)],
        ),
    ]
    parts = [
        ("## Early exits", [*_WHAT.splitlines(), "", *_summaries(results)]),
        *(curves if any(result.exits is not None for result in results) else []),
        ("### Cost at equal accuracy", [*_AT_EQUAL.splitlines(), "", *_equal_accuracy(results)]),
    ]
    return [line for title, lines in parts for line in ("", title, "", *lines)]


def by_lot(points: Points, cost: float) -> float:
    """Return the best accuracy of two points between which a lot decides, so that the mean cost is `cost`.

    Args:
        points: costs and accuracies.
        cost: wanted; beyond the cheapest and the dearest point, theirs.
    """
    ends = [point[0] for point in points]
    cost = min(max(cost, min(ends)), max(ends))
    return max(
        low if right == left else low + (high - low) * (cost - left) / (right - left)
        for left, low in points
        for right, high in points
        if left <= cost <= right
    )


def cost_of_accuracy(curves: Iterable[Points], accuracy: float) -> float | None:
    """Return the smallest cost at which curves reach an accuracy, or None where they do not.

    Args:
        curves: costs, rising, and accuracies; between two neighbours a curve is a line.
        accuracy: wanted.
    """
    found = []
    for points in curves:
        found += [cost for cost, reached in points if reached >= accuracy]
        found += [
            left + (right - left) * (accuracy - low) / (high - low)
            for (left, low), (right, high) in pairwise(points)
            if low < accuracy <= high
        ]
    return min(found, default=None)


def _summaries(results: Sequence[RunResult]) -> list[str]:
    return [
        f"- {result.folder}: {_summary(result.exits)}{_HALVES if result.reports['best'].get(HALVES) else ''}"
        for result in results
        if result.has_exits
    ]


def _summary(kept: KeptCurve | None) -> str:
    if kept is None:
        return "no curve; `sidestep curve` makes one."
    budgeted, anytime = kept.points("budgeted"), kept.accuracy_cost("anytime")
    farthest = max((_deviation(row) for row in budgeted), key=abs)
    # At both ends all images leave at one exit, and there is nothing to gain.
    inner = kept.accuracy_cost("budgeted")[1:-1]
    gains = [accuracy - by_lot(anytime, cost) for cost, accuracy in inner]
    text = (
        f"{kept.checkpoint} checkpoint, {kept.curve.criterion}; the cost reached is at most "
        f"{abs(farthest):.1%} off a budget"
    )
    if not gains:
        return f"{text}."
    return (
        f"{text}; above anytime exits of equal mean cost at {sum(gain > 0 for gain in gains)} of "
        f"{len(gains)} budgets between the first and the last exit, by {sum(gains) / len(gains):+.2f} points "
        f"on average, from {min(gains):+.2f} to {max(gains):+.2f}."
    )


def _anytime(results: Sequence[RunResult]) -> list[str]:
    names = [
        "run", "full GFLOPs", "accuracy % @ of full, exit by exit", "temperatures", "calibration error %",
        "without temperature %",
    ]  # fmt: skip
    rows = []
    for result in results:
        if result.exits is None:
            rows.append([result.folder, *_alone(result), *"---"])
            continue
        curve = result.exits.curve
        points = [_reached(row.point, curve.full_macs) for row in result.exits.points("anytime")]
        errors = (curve.calibration_errors, curve.raw_calibration_errors)
        rows.append(
            [
                result.folder,
                _gflops(curve.full_macs),
                ", ".join(points),
                ", ".join(f"{temperature:.3f}" for temperature in curve.temperatures),
                *(", ".join(f"{100 * error:.2f}" for error in of_exits) for of_exits in errors),
            ]
        )
    return table(names, rows)


def _budgeted(results: Sequence[RunResult]) -> list[str]:
    rows = []
    for result in results:
        if result.exits is None:
            rows.append([result.folder, *_alone(result)])
            continue
        full_macs, anytime = result.exits.curve.full_macs, result.exits.accuracy_cost("anytime")
        points = []
        for row in result.exits.points("budgeted"):
            rival = by_lot(anytime, 2e-9 * row.point.macs)
            points.append(_reached(row.point, full_macs, f" ({rival:.2f})"))
        rows.append([result.folder, _gflops(full_macs), ", ".join(points)])
    heading = "accuracy % (anytime by lot %) @ of full, budget by budget"
    return table(["run", "full GFLOPs", heading], rows)


def _equal_accuracy(results: Sequence[RunResult]) -> list[str]:
    curves = {result.folder: _curves(result) for result in results}
    best = max(accuracy for points in curves.values() for curve in points for _, accuracy in curve)
    levels = [floor(2 * best) / 2 - step for step in _STEPS_DOWN]
    rows = []
    for result in results:
        costs = [cost_of_accuracy(curves[result.folder], level) for level in levels]
        full = _full_gflops(result)
        cells = ("-" if cost is None else f"{cost:.4f} ({_percent(cost / full)})" for cost in costs)
        rows.append([result.folder, result.savings, *cells])
    return table(["run", "saves by", *(f"{level:.1f} %" for level in levels)], rows)


def _curves(result: RunResult) -> list[Points]:
    """Return costs and accuracies of a run along its curves, or those of its one point."""
    if result.exits is None:
        return [[(result.gflops, result.percent)]]
    # The line between two anytime exits is no curve of the network's own.
    anytime = [[point] for point in result.exits.accuracy_cost("anytime")]
    return [*anytime, sorted(result.exits.accuracy_cost("budgeted"))]


def _full_gflops(result: RunResult) -> float:
    return result.gflops / float(result.reports["best"]["fraction_of_full"])


def _deviation(row: CurvePoint) -> float:
    """Return how far the cost reached is off the budget, as a fraction of the budget."""
    return 0.0 if row.budget_macs is None else row.point.macs / row.budget_macs - 1


def _gflops(macs: float) -> str:
    return f"{2e-9 * macs:.4f}"


def _reached(point: ExitPoint, full_macs: float, rival: str = "") -> str:
    return f"{100 * point.accuracy:.2f}{rival} @ {_percent(point.macs / full_macs)}"


def _alone(result: RunResult) -> list[str]:
    """Return the full cost and the one point of a network without a curve."""
    full = _full_gflops(result)
    return [f"{full:.4f}", f"{result.percent:.2f} @ {_percent(result.gflops / full)}"]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
