"""Results pages from run folders."""

import json
from pathlib import Path

import pytest
import yaml

from sidestep.analysis.figures import save_accuracy_cost
from sidestep.analysis.published import PublishedPoint, published_points
from sidestep.analysis.results import accuracy_cost, read_result, results_page
from sidestep.cli import main
from sidestep.errors import CheckpointError, RecipeError

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
        "model": {"init": "/home/someone/static.safetensors"},
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
    assert f"{row}| - | - | 2.0 |" in page
    assert "- two: 90.00 @ 60 %, 94.00 @ 58 %" in page
    assert "model: {init: static.safetensors}" in page
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
    ]
    (run / "bench.json").write_text(json.dumps({"rows": rows}))
    assert "| 42 | 0.110 | 0.200 | 2.0 |" in results_page("Fine-tuning", [run])


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
