"""Runs that differ in their seed alone are one; figures and tables say so, and name runs by their folders."""

from pathlib import Path
from typing import Any

import pytest

from sidestep.results.figures import Line, Point
from sidestep.results.page import accuracy_cost, exit_curves, results_page
from sidestep.results.page_data import read_results
from sidestep.results.run_groups import run_groups
from tests.finished_runs import write_exit_run, write_run


def seeds(folder: Path, name: str, accuracies: list[float], **settings: Any) -> list[Path]:
    """Write a run for every accuracy, with its number as the seed, at costs that rise by 0.01."""
    return [
        write_run(
            folder / f"{name}_seed{seed}",
            {"training.seed": seed, **settings},
            best={"accuracy": accuracy, "gflops": 0.08 + 0.01 * seed},
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def points(lines: list[Line]) -> dict[str, list[tuple[float, float]]]:
    return {line.name: [(point.gflops, point.percent) for point in line.points] for line in lines}


def test_seeds_are_one_point_with_its_deviation(tmp_path: Path) -> None:
    (line,) = accuracy_cost(seeds(tmp_path, "net", [0.90, 0.92, 0.94]))
    assert line.name == "net"
    (point,) = line.points
    assert point == Point(
        gflops=pytest.approx(0.09),
        percent=pytest.approx(92.0),
        gflops_deviation=pytest.approx(0.01),
        percent_deviation=pytest.approx(2.0),
    )


def test_a_run_alone_is_named_by_its_folder_and_deviates_by_nothing(tmp_path: Path) -> None:
    names = {"one": "recipe", "two": "recipe", "three": "other"}
    runs = [
        write_run(tmp_path / folder, {"name": name, "method.gate_mode": folder})
        for folder, name in names.items()
    ]
    lines = accuracy_cost(runs)
    assert [line.name for line in lines] == ["one", "two", "three"]
    assert all(point.percent_deviation == 0 for line in lines for point in line.points)


def test_what_differs_in_more_than_its_seed_is_no_group(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "a", [0.9, 0.92]) + seeds(
        tmp_path, "b", [0.8, 0.82], **{"training.ema_decay": 0.9}
    )
    assert points(accuracy_cost(runs)).keys() == {"a", "b"}
    assert [group.seeds for group in run_groups(read_results(runs))] == [[0, 1], [0, 1]]


def test_the_name_of_a_recipe_makes_no_difference(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"net_{seed}", {"name": f"net_{seed}", "training.seed": seed}) for seed in (0, 1)
    ]
    assert points(accuracy_cost(runs)).keys() == {"net"}


def test_one_seed_twice_is_no_deviation(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {"training.seed": 0}) for name in ("here", "there")]
    assert points(accuracy_cost(runs)).keys() == {"here", "there"}


def test_names_that_share_no_word_and_names_that_are_equal(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {"training.seed": seed}) for seed, name in enumerate("ab")]
    assert points(accuracy_cost(runs)).keys() == {"a … b"}
    (tmp_path / "other").mkdir()
    runs = [write_run(tmp_path / "run"), write_run(tmp_path / "other" / "run", {"method.target": [1]})]
    assert points(accuracy_cost(runs)).keys() == {"run", "run (2)"}


def test_a_line_joins_runs_of_one_recipe_that_differ_in_one_number(tmp_path: Path) -> None:
    runs = [
        run
        for target in (0.8, 0.4, 0.6)
        for run in seeds(tmp_path, f"net_{target}", [target, target + 0.02], **{"method.target": target})
    ]
    (line,) = accuracy_cost(runs)
    assert line.name == "net, target 0.4, 0.6, 0.8"
    assert [point.percent for point in line.points] == pytest.approx([81.0, 41.0, 61.0])


def test_a_sweep_over_two_settings_has_a_line_of_budgets_for_every_value_of_the_other(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"net_{target}_gamma_{gamma}",
            {"method.target": target, "method.router.gamma": gamma, "training.max_fraction": target + 0.02},
            best={"accuracy": target + gamma / 10},
        )
        for gamma in (0, 0.5)
        for target in (0.4, 0.6, 0.8)
    ]
    found = {name: [percent for _, percent in line] for name, line in points(accuracy_cost(runs)).items()}
    assert found == {
        "net_gamma_0, target 0.4, 0.6, 0.8": pytest.approx([40.0, 60.0, 80.0]),
        "net_gamma_0.5, target 0.4, 0.6, 0.8": pytest.approx([45.0, 65.0, 85.0]),
    }


def test_no_line_joins_runs_that_differ_in_more_or_in_words(tmp_path: Path) -> None:
    more = [
        write_run(tmp_path / f"net_{target}", {"method.target": target, "method.srm.alpha": target})
        for target in (0.4, 0.6)
    ]
    assert points(accuracy_cost(more)).keys() == {"net_0.4", "net_0.6"}
    words = [write_run(tmp_path / f"path_{path}", {"method.path": path}) for path in ("101", "110")]
    assert points(accuracy_cost(words)).keys() == {"path_101", "path_110"}


def test_curves_of_exits_are_no_points(tmp_path: Path) -> None:
    runs = [write_exit_run(tmp_path / "one"), write_run(tmp_path / "two")]
    (network,) = exit_curves(runs)
    assert network.name == "one"
    curves = {kind: [(p.gflops, p.percent) for p in curve] for kind, curve in network.curves.items()}
    assert curves == {
        "anytime": [(0.02, 80.0), (pytest.approx(0.08), 90.0)],
        "budgeted": [(0.02, 80.0), (pytest.approx(0.051), 89.0), (pytest.approx(0.08), 90.0)],
    }
    assert points(accuracy_cost(runs[:1])) == {}


def test_seeds_of_networks_with_exits_are_one_curve(tmp_path: Path) -> None:
    runs = [write_exit_run(tmp_path / f"net_{seed}", {"training.seed": seed}) for seed in (0, 1)]
    (network,) = exit_curves(runs)
    assert network.name == "net" and len(network.curves["budgeted"]) == 3
    assert network.curves["anytime"][1].percent == 90.0


def test_a_page_has_a_row_for_several_seeds(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "net", [0.90, 0.92, 0.94])
    page = results_page("Seeds", [*runs, write_run(tmp_path / "alone", {"method.target": 0.1})])
    best = "92.00 ± 2.00 | 0.0900 ± 0.0100 | 58.2 ± 0.0 %"
    row = f"| net | rdi_net | 0, 1, 2 | {best} | 92.99 ± 0.00 | 2.0 ± 0.0 |"
    assert row in page.split("## Over seeds")[1]
    assert "| alone |" not in page.split("## Over seeds")[1].split("## ")[0]
    assert "Over seeds" not in results_page("One", runs[:1])


def test_a_page_of_eight_small_runs_is_short(tmp_path: Path) -> None:
    """Eight methods with recipes of their own, exits, and a hundred epochs take two screens, not nine."""
    runs = []
    for index in range(8):
        router = {f"option_{number}": number for number in range(30)}
        method = {"name": f"method_{index}", "target": 0.6, "router": router}
        run = write_exit_run(tmp_path / f"run_{index}", {"method": method, "name": f"recipe_{index}"})
        rows = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(rows[:1] * 100) + "\n")
        runs.append(run)
    page = results_page("Eight", runs)
    assert len(page.splitlines()) < 170
    curve = next(line for line in page.splitlines() if line.startswith("- run_0: 1: 90.00 @ 60 %, "))
    assert curve.count("@") <= 8 and "100: 90.00" in curve


def test_of_many_epochs_the_best_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    row = (run / "metrics.jsonl").read_text().splitlines()[0]
    best = row.replace("0.9", "0.99")
    (run / "metrics.jsonl").write_text("\n".join([row] * 11 + [best] + [row] * 20) + "\n")
    assert ", 12: 99.00 @ 60 %, " in results_page("Epochs", [run])
