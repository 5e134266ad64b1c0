"""Early exits on results pages, and the curves that run folders keep."""

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.evaluation.thresholds import ExitPoint
from sidestep.results.exit_tables import by_lot, cost_of_accuracy
from sidestep.results.figures import exit_figure
from sidestep.results.kept_curve import EXITS, KeptCurve, read_exit_curve
from sidestep.results.page import results_page
from tests.finished_runs import two_exits, write_exit_run, write_run

POINTS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 100)), min_size=1, max_size=6)


def test_where_no_run_has_a_curve_there_are_no_tables_of_curves(tmp_path: Path) -> None:
    runs = [write_exit_run(tmp_path / "bare", curve=False), write_run(tmp_path / "skips")]
    page = results_page("Exits", runs)
    assert "- bare: no curve; `sidestep curve` makes one." in page
    assert "### Cost at equal accuracy" in page
    assert "### Anytime" not in page and "### Under a budget" not in page


def test_a_page_shows_early_exits_beside_networks_without(tmp_path: Path) -> None:
    runs = [write_exit_run(tmp_path / "exits"), write_run(tmp_path / "skips")]
    page = results_page("Exits", [*runs, write_exit_run(tmp_path / "bare", curve=False)])
    summary = "- exits: last checkpoint, margin; the cost reached is at most 2.0% off a budget; "
    gain = "above anytime exits of equal mean cost at 1 of 1 budgets between the first and the last exit"
    assert f"{summary}{gain}, by +3.83 points on average" in page
    assert "- bare: no curve; `sidestep curve` makes one." in page
    anytime = "80.00 @ 20.0 %, 90.00 @ 80.0 % | 1.250, 1.500 | 1.00, 2.00 | 5.00, 6.00 |"
    assert f"| exits | 0.1000 | {anytime}" in page
    assert "| skips | 0.1376 | 93.12 @ 58.2 % | - | - | - |" in page
    budgeted = "80.00 (80.00) @ 20.0 %, 89.00 (85.17) @ 51.0 %, 90.00 (90.00) @ 80.0 % |"
    assert f"| exits | 0.1000 | {budgeted}" in page
    assert "| skips | 0.1376 | 93.12 @ 58.2 % |\n" in page
    assert "| run | saves by | 93.0 % | 92.5 % | 92.0 % | 91.0 % | 89.0 % |" in page
    assert "| exits | exits | - | - | - | - | 0.0510 (37.1 %) |" in page


def test_a_page_without_exits_says_nothing_of_them(tmp_path: Path) -> None:
    assert "exit" not in results_page("Skipping", [write_run(tmp_path / "one")])


def test_a_lot_between_two_exits_is_the_rival_of_a_budget() -> None:
    points = [(1.0, 80.0), (2.0, 81.0), (3.0, 90.0)]
    # Leaving the second exit out is better.
    assert by_lot(points, 2.0) == 85.0
    assert (by_lot(points, 0.5), by_lot(points, 1.0), by_lot(points, 9.0)) == (80.0, 80.0, 90.0)


@given(points=POINTS, cost=st.floats(0, 12))
def test_a_lot_is_no_worse_than_an_exit_of_that_cost_and_no_better_than_the_best(
    points: list[tuple[float, float]], cost: float
) -> None:
    reached = by_lot(points, cost)
    assert reached <= max(accuracy for _, accuracy in points) + 1e-9
    for left, accuracy in points:
        assert by_lot(points, left) >= accuracy - 1e-9


def test_the_cost_of_an_accuracy_is_read_off_the_line() -> None:
    curve = [(1.0, 80.0), (2.0, 90.0), (3.0, 89.0), (4.0, 91.0)]
    assert cost_of_accuracy([curve], 85.0) == 1.5
    assert cost_of_accuracy([curve], 70.0) == 1.0
    assert cost_of_accuracy([curve], 90.5) == 3.75
    assert cost_of_accuracy([curve, [(3.5, 92.0)]], 90.5) == 3.5
    assert cost_of_accuracy([curve], 91.5) is None


@given(points=POINTS, low=st.floats(0, 100), high=st.floats(0, 100))
def test_more_accuracy_never_costs_less(points: list[tuple[float, float]], low: float, high: float) -> None:
    low, high = sorted((low, high))
    less, more = (cost_of_accuracy([sorted(points)], level) for level in (low, high))
    assert more is None or (less is not None and less <= more + 1e-9)


def test_a_kept_curve_comes_back(tmp_path: Path) -> None:
    kept = read_exit_curve(write_exit_run(tmp_path / "one") / EXITS)
    assert kept == KeptCurve(checkpoint="last", curve=two_exits())
    assert kept.curve.points[3].point == ExitPoint(accuracy=0.89, macs=25.5e6, exit_rates=[0.5, 0.5])
    assert kept.accuracy_cost("anytime") == [(0.02, 80.0), (pytest.approx(0.08), 90.0)]
    assert KeptCurve.from_dict(kept.as_dict()) == kept


def test_a_curve_is_a_table_in_gflops_and_fractions(tmp_path: Path) -> None:
    with open(write_exit_run(tmp_path / "one") / "exits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["anytime"] * 2 + ["budgeted"] * 3
    assert (rows[0]["budget_gflops"], rows[0]["budget_fraction"]) == ("", "")
    middle = {key: float(rows[3][key]) for key in rows[3] if key not in ("kind", "ms")}
    assert math.isclose(middle["budget_gflops"], 0.05) and math.isclose(middle["budget_fraction"], 0.5)
    assert math.isclose(middle["gflops"], 0.051) and math.isclose(middle["fraction_of_full"], 0.51)
    assert rows[3]["ms"] == ""  # without a latency book
    assert (middle["accuracy"], middle["exit_rate_0"], middle["exit_rate_1"]) == (0.89, 0.5, 0.5)


def test_a_curve_is_drawn_as_stairs_and_as_a_line(tmp_path: Path) -> None:
    assert (write_exit_run(tmp_path / "one") / "exits.png").read_bytes()[1:4] == b"PNG"
    (axes,) = exit_figure(two_exits()).axes
    anytime, budgeted = axes.get_lines()
    assert (anytime.get_label(), anytime.get_drawstyle()) == ("anytime", "steps-post")
    assert (budgeted.get_label(), budgeted.get_drawstyle()) == ("budgeted", "default")
    assert list(budgeted.get_xdata()) == pytest.approx([0.02, 0.051, 0.08])
    assert list(budgeted.get_ydata()) == pytest.approx([80.0, 89.0, 90.0])
