"""Networks for all budgets on results pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sidestep.errors import CheckpointError
from sidestep.evaluation.budget_points import BudgetCurve, BudgetPoint
from sidestep.results.kept_curve import BUDGETS, read_budget_curve, save_budget_curve
from sidestep.results.page import accuracy_cost, results_page, save_results
from sidestep.results.page_data import read_results
from tests.finished_runs import write_run


def curve(gain: float = 0.0) -> BudgetCurve:
    points = [
        BudgetPoint(asked=0.4, accuracy=0.88 + gain, macs=19.0),
        BudgetPoint(asked=0.7, accuracy=0.91 + gain, macs=36.0),
    ]
    return BudgetCurve(full_macs=50.0, budgets_macs=[20.0, 35.0], points=points)


def budget_run(folder: Path, seed: int = 0, gain: float = 0.0) -> Path:
    write_run(folder, {"training.seed": seed})
    save_budget_curve(folder, curve(gain), "best")
    return folder


def test_a_kept_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = budget_run(tmp_path / "run")
    assert read_budget_curve(folder / BUDGETS) == curve()
    assert (folder / "budgets.csv").read_text().splitlines()[1] == "0.4,4e-08,0.4,3.8e-08,0.38,,0.88,,"


def test_a_page_has_a_row_of_all_budgets_with_deviations_over_seeds(tmp_path: Path) -> None:
    folders = [budget_run(tmp_path / "all_0"), budget_run(tmp_path / "all_1", seed=1, gain=0.01)]
    folders.append(write_run(tmp_path / "one", {"method.target": 0.9}))
    page = results_page(None, folders)
    (row,) = [line for line in page.splitlines() if "@ 38.0 %" in line]
    assert "88.50 ± 0.71 @ 38.0 %, 91.50 ± 0.71 @ 72.0 % | 5.0%" in row
    lines = {line.name: line for line in accuracy_cost(folders)}
    assert [len(line.points) for line in lines.values()] == [1, 2]
    drawn = lines[next(name for name in lines if name.startswith("all"))]
    assert [point.percent for point in drawn.points] == pytest.approx([88.5, 91.5])
    assert "all budgets" not in results_page(None, folders[2:])


def test_the_file_beside_a_page_keeps_budgets(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    save_results(out, [budget_run(tmp_path / "run")], title="Budgets")
    assert read_results([out.with_suffix(".json")])[0].budgets == curve()
    before = out.read_text()
    save_results(out, [out.with_suffix(".json")])
    assert out.read_text() == before


def test_gates_that_were_set_to_budgets_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "gates")
    points = [replace(point, image_bits=1.25, class_bits=0.5) for point in curve().points]
    dialled = replace(curve(), points=points, by_dial=True)
    save_budget_curve(tmp_path / "gates", dialled, "best")
    assert read_budget_curve(tmp_path / "gates" / BUDGETS) == dialled
    page = results_page(None, [tmp_path / "gates", budget_run(tmp_path / "all", seed=1)])
    (row,) = [line for line in page.partition("## Gates set to")[2].splitlines() if "@ 38.0 %" in line]
    assert row.endswith("| 5.0% | 1.25 |")
    assert "## Networks for all budgets" in page


def test_a_damaged_curve_is_named(tmp_path: Path) -> None:
    folder = budget_run(tmp_path / "run")
    (folder / BUDGETS).write_text('{"points": [{}]}')
    with pytest.raises(CheckpointError, match=r"budgets\.json is damaged"):
        read_results([folder])
