"""Results pages from run folders."""

import json
from pathlib import Path

import pytest
import yaml

from sidestep.cli.main import main
from sidestep.errors import CheckpointError, RecipeError
from sidestep.evaluation.exit_curve import CurvePoint, ExitCurve
from sidestep.evaluation.thresholds import ExitPoint
from sidestep.results.exit_tables import by_lot, cost_of_accuracy
from sidestep.results.figures import save_accuracy_cost
from sidestep.results.kept_curve import read_exit_curve, save_exit_curve
from sidestep.results.page import accuracy_cost, exit_curves, results_page
from sidestep.results.published import PublishedPoint, published_points
from sidestep.results.run_result import read_result

REPORT = {
    "accuracy": 0.9312,
    "gflops": 0.0801,
    "fraction_of_full": 0.5821,
    "executed_mean": 8.5,
    "executed_std": 1.25,
    "num_paths": 42,
}


def run_folder(folder: Path, name: str, recipe_name: str = "rdi_net_resnet32") -> Path:
    run = folder / name
    run.mkdir()
    recipe = {
        "name": recipe_name,
        "method": {"name": "rdi_net"},
        "model": {"name": "cifar_resnet32", "init": "/home/someone/static.safetensors"},
        "data": {"source": "hfds//data/cifar10"},
        "training": {"seed": 3},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hardware = {"cpu": "Some CPU", "flags": ["avx2"], "cores": 2, "threads": 2}
    environment = {"hardware": hardware, "versions": {"torch": "2.x"}, "commit": "abc123"}
    (run / "environment.json").write_text(json.dumps(environment))
    last = REPORT | {"accuracy": 0.9299}
    (run / "report.json").write_text(json.dumps({"best": REPORT, "last": last}))
    rows = [
        {"seconds": 90.0, "val": {"accuracy": 0.9, "fraction_of_full": 0.6}},
        {"seconds": 30.0, "val": {"accuracy": 0.94, "fraction_of_full": 0.58}},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_page_says_what_came_out_and_how_it_was_made(tmp_path: Path) -> None:
    page = results_page("Fine-tuning", [run_folder(tmp_path, "one"), run_folder(tmp_path, "two")])
    assert page.startswith("# Fine-tuning\n")
    row = "| one | rdi_net | 3 | 93.12 | 0.0801 | 58.2 % | 92.99 | 0.0801 | 58.2 % | 8.50 ± 1.25 | 42 "
    assert f"{row}| - | - | - | 2.0 |" in page
    assert "- two: 90.00 @ 60 %, 94.00 @ 58 %" in page
    assert "init: static.safetensors" in page
    assert "data: {source: cifar10}" in page
    assert "Commit abc123, Some CPU (avx2), 2 cores, 2 threads used, torch 2.x." in page


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "one")
    (run / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"report\.json is missing; finish it with --resume"):
        read_result(run)


def bench_row(runtime: str, precision: str, batch_size: int, ms_per_image: float) -> dict[str, object]:
    return {
        "runtime": runtime,
        "precision": precision,
        "batch_size": batch_size,
        "ms_per_image": ms_per_image,
    }


def test_a_page_has_the_milliseconds_of_the_largest_measured_batch(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "one")
    rows = [
        bench_row("gathered", "float32", 256, 0.11),
        bench_row("gathered", "float32", 1, 5.0),
        bench_row("gathered", "bfloat16", 256, 0.07),
        bench_row("static pytorch", "float32", 256, 0.2),
        bench_row("static openvino", "float32", 256, 0.1),
        bench_row("engine", "float32", 256, 0.05),
    ]
    (run / "bench.json").write_text(json.dumps({"rows": rows}))
    assert "| 42 | 0.110 | 0.200 | 0.050 | 2.0 |" in results_page("Fine-tuning", [run])


def test_points_of_one_recipe_are_one_series(tmp_path: Path) -> None:
    names = [("a", "rdi_net_resnet32_c10"), ("b", "vanilla_resnet32_c10"), ("c", "rdi_net_resnet32_c10")]
    series = accuracy_cost([run_folder(tmp_path, folder, recipe) for folder, recipe in names])
    assert {name: len(points) for name, points in series.items()} == {"rdi_net": 2, "vanilla": 1}
    assert series["vanilla"] == [(0.0801, pytest.approx(93.12))]


def test_published_costs_are_converted() -> None:
    numbers = {
        "system": "x",
        "backbone": "y",
        "dataset": "z",
        "accuracy": 90.0,
        "cost": 0.125,
        "read": "text",
    }
    assert PublishedPoint(**numbers, unit="MACs").gflops == 0.25
    assert PublishedPoint(**numbers, unit="FLOPs").gflops == 0.125
    # No dynamic ResNet-110 costs more than the static one (0.506 GFLOPs), whatever its source's unit.
    assert max(point.gflops for point in published_points("cifar10")) < 0.51
    with pytest.raises(RecipeError, match="must be one of cifar10, cifar100, imagenet, got 'mnist'"):
        published_points("mnist")


def test_the_figure_shows_runs_and_papers(tmp_path: Path) -> None:
    picture = tmp_path / "figure.png"
    save_accuracy_cost(picture, {"ours": [(0.1, 92.0), (0.05, 90.0)]}, published_points("cifar10"))
    alone = tmp_path / "alone.png"
    save_accuracy_cost(alone, {"ours": [(0.1, 92.0), (0.05, 90.0)]})
    assert picture.read_bytes()[1:4] == b"PNG"
    assert picture.stat().st_size > alone.stat().st_size


def test_the_command_writes_page_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page, picture = str(run_folder(tmp_path, "one")), tmp_path / "page.md", tmp_path / "figure.png"
    options = ["--out", str(page), "--figure", str(picture), "--published", "cifar10"]
    assert main(["results", run, "--title", "Runs", *options]) == 0
    assert page.read_text().startswith("# Runs\n") and picture.is_file()
    assert main(["results", run, "--published", "cifar10"]) == 2
    assert "published has no effect without figure" in capsys.readouterr().err


def with_exits(run: Path, curve: bool = True) -> Path:
    """Turn a run into one of a network with two exits, at 10 and 40 M MACs, and three budgets."""
    reports = {"best": REPORT | {"exit_rates": [0.0, 1.0], "accuracy": 0.9, "gflops": 0.08}, "last": REPORT}
    (run / "report.json").write_text(json.dumps(reports))
    points = [((80.0, 10), None), ((90.0, 40), None), ((80.0, 10), 10), ((89.0, 25.5), 25), ((90.0, 40), 40)]
    rows = [
        CurvePoint(
            kind="anytime" if budget is None else "budgeted",
            budget_macs=None if budget is None else 1e6 * budget,
            thresholds=None if budget is None else [0.5],
            point=ExitPoint(accuracy=accuracy / 100, macs=1e6 * macs, exit_rates=[0.5, 0.5]),
        )
        for (accuracy, macs), budget in points
    ]
    found = ExitCurve(
        criterion="margin",
        temperatures=[1.25, 1.5],
        calibration_errors=[0.01, 0.02],
        raw_calibration_errors=[0.05, 0.06],
        full_macs=50e6,
        points=rows,
    )
    if curve:
        save_exit_curve(run, found, "last")
    return run


def test_a_page_shows_early_exits_beside_networks_without(tmp_path: Path) -> None:
    runs = [with_exits(run_folder(tmp_path, "exits")), run_folder(tmp_path, "skips")]
    page = results_page("Exits", [*runs, with_exits(run_folder(tmp_path, "bare"), curve=False)])
    summary = "- exits: last checkpoint, margin; the cost reached is at most 2.0% off a budget; "
    gain = "above anytime exits of equal mean cost at 1 of 1 budgets between the first and the last exit"
    assert f"{summary}{gain}, by +3.83 points on average" in page
    assert "- bare: no curve; `sidestep curve` makes one." in page
    assert "| exits | 1 | 80.00 | 10.00 | 0.0200 | 20.0 % | 1.250 | 1.00 | 5.00 |" in page
    assert "| skips | - | 93.12 | 40.05 | 0.0801 | 58.2 % | - | - | - |" in page
    assert "| exits | 50.0 % | 25.50 | 0.0510 | 51.0 % | +2.00 % | 89.00 | 85.17 |" in page
    assert "| skips | - | 40.05 | 0.0801 | 58.2 % | - | 93.12 | - |" in page
    assert "| run | saves by | 93.0 % | 92.5 % | 92.0 % | 91.0 % | 89.0 % |" in page
    assert "| exits | exits | - | - | - | - | 0.0510 (37.1 %) |" in page


def test_a_page_without_exits_says_nothing_of_them(tmp_path: Path) -> None:
    assert "exit" not in results_page("Skipping", [run_folder(tmp_path, "one")])


def test_what_a_network_saves_by_is_read_from_its_report(tmp_path: Path) -> None:
    run = with_exits(run_folder(tmp_path, "both"))
    assert read_result(run).savings == "exits"
    reports = json.loads((run / "report.json").read_text())
    reports["best"]["keep_rates"] = [1.0, 0.5]
    (run / "report.json").write_text(json.dumps(reports))
    assert read_result(run).savings == "skipping and exits"
    assert read_result(run_folder(tmp_path, "neither")).savings == "nothing"


def test_a_kept_curve_comes_back(tmp_path: Path) -> None:
    kept = read_exit_curve(with_exits(run_folder(tmp_path, "one")))
    assert kept is not None and kept.checkpoint == "last"
    assert kept.curve.points[3].point == ExitPoint(accuracy=0.89, macs=25.5e6, exit_rates=[0.5, 0.5])
    assert kept.accuracy_cost("anytime") == [(0.02, 80.0), (pytest.approx(0.08), 90.0)]
    assert read_exit_curve(tmp_path) is None


def test_a_lot_between_two_exits_is_the_rival_of_a_budget() -> None:
    points = [(1.0, 80.0), (2.0, 81.0), (3.0, 90.0)]
    # Leaving the second exit out is better.
    assert by_lot(points, 2.0) == 85.0
    assert (by_lot(points, 0.5), by_lot(points, 1.0), by_lot(points, 9.0)) == (80.0, 80.0, 90.0)


def test_the_cost_of_an_accuracy_is_read_off_the_line() -> None:
    curve = [(1.0, 80.0), (2.0, 90.0), (3.0, 89.0), (4.0, 91.0)]
    assert cost_of_accuracy([curve], 85.0) == 1.5
    assert cost_of_accuracy([curve], 70.0) == 1.0
    assert cost_of_accuracy([curve], 90.5) == 3.75
    assert cost_of_accuracy([curve, [(3.5, 92.0)]], 90.5) == 3.5
    assert cost_of_accuracy([curve], 91.5) is None


def test_curves_of_exits_are_drawn_beside_points(tmp_path: Path) -> None:
    run, picture, alone = with_exits(run_folder(tmp_path, "one")), tmp_path / "a.png", tmp_path / "b.png"
    curves = exit_curves([run, run_folder(tmp_path, "two")])
    assert curves == {
        "one": {
            "anytime": [(0.02, 80.0), (pytest.approx(0.08), 90.0)],
            "budgeted": [(0.02, 80.0), (pytest.approx(0.051), 89.0), (pytest.approx(0.08), 90.0)],
        }
    }
    assert accuracy_cost([run]) == {}
    save_accuracy_cost(picture, {"ours": [(0.1, 92.0)]}, exits=curves)
    save_accuracy_cost(alone, {"ours": [(0.1, 92.0)]})
    assert picture.stat().st_size > alone.stat().st_size


def test_static_networks_are_points_of_their_own(tmp_path: Path) -> None:
    runs = []
    for depth in (8, 20):
        run = run_folder(tmp_path, f"static{depth}", "static_small")
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe |= {"method": {"name": "static"}, "model": {"name": f"cifar_resnet{depth}"}}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        runs.append(run)
    assert list(accuracy_cost(runs)) == ["static cifar_resnet8", "static cifar_resnet20"]
