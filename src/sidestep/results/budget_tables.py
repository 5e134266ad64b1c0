"""Networks at many budgets on results pages: accuracy and cost at every budget."""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.evaluation.budget_points import BudgetCurve
from sidestep.results.markdown import table
from sidestep.results.run_groups import run_groups, with_deviation
from sidestep.results.run_result import RunResult

_WHAT = """Test split, one network per row that is asked for one budget after the other. The cost is what came
out, routers in, of the full network's MACs; of several seeds mean and deviation of a sample."""
_BY_DIAL = """Gates that were trained for one budget have a bias, solved on the validation split. Where a path
has few bits about its image, budgets change the depth for all images alike."""


def budget_sections(results: Sequence[RunResult]) -> list[str]:
    """Return the lines of a page about networks for all budgets, none if no run has a curve of them.

    Args:
        results: of the page, in the order of its rows.
    """
    found = [result for result in results if result.budgets is not None]
    given = [result for result in found if result.budgets is not None and not result.budgets.by_dial]
    dialled = [result for result in found if result not in given]
    return [
        *_section(given, "Networks for all budgets", _WHAT),
        *_section(dialled, "Gates set to other budgets", f"{_WHAT}\n{_BY_DIAL}", bits=True),
    ]


def _section(results: Sequence[RunResult], title: str, what: str, *, bits: bool = False) -> list[str]:
    groups = run_groups(results)
    if not groups:
        return []
    rows = []
    for group in groups:
        curves = [result.budgets for result in group.results if result.budgets is not None]
        cells = [_cell(curves, place) for place in range(min(len(curve.points) for curve in curves))]
        most = [max((point.image_bits or 0.0 for curve in curves for point in curve.points), default=0.0)]
        known = [f"{each:.2f}" for each in most] if bits else []
        rows.append([group.name, ", ".join(cells), f"{max(map(_farthest, curves)):.1%}", *known])
    heads = ["run", "accuracy % @ of full, budget by budget", "farthest off a budget"]
    heads += ["most bits about an image"] if bits else []
    return ["", f"## {title}", "", *what.splitlines(), "", *table(heads, rows)]


def _cell(curves: Sequence[BudgetCurve], place: int) -> str:
    points = [curve.points[place] for curve in curves]
    costs = [100 * point.macs / curve.full_macs for point, curve in zip(points, curves, strict=True)]
    accuracy = with_deviation([100 * point.accuracy for point in points], 2)
    return f"{accuracy} @ {sum(costs) / len(costs):.1f} %"


def _farthest(curve: BudgetCurve) -> float:
    """Return how far a cost is off its budget at most, as a fraction of the budget."""
    pairs = zip(curve.points, curve.budgets_macs, strict=True)
    return max(abs(point.macs / budget - 1) for point, budget in pairs)
