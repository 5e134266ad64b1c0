"""Results pages from run folders."""

import json
from pathlib import Path

import pytest
import yaml

from sidestep.analysis.results import read_result, results_page
from sidestep.errors import CheckpointError

REPORT = {
    "accuracy": 0.9312,
    "gflops": 0.0801,
    "fraction_of_full": 0.5821,
    "executed_mean": 8.5,
    "executed_std": 1.25,
    "num_paths": 42,
}


def run_folder(folder: Path, name: str) -> Path:
    run = folder / name
    run.mkdir()
    recipe = {
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
    row = "| one | rdi_net | 3 | 93.12 | 0.0801 | 58.2 % | 92.99 | 0.0801 | 58.2 % | 8.50 ± 1.25 | 42 | 2.0 |"
    assert row in page
    assert "- two: 90.00 @ 60 %, 94.00 @ 58 %" in page
    assert "model: {init: static.safetensors}" in page
    assert "data: {source: cifar10}" in page
    assert "Commit abc123, Some CPU (avx2), 2 cores, 2 threads used, torch 2.x." in page


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "one")
    (run / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"report\.json is missing; finish it with --resume"):
        read_result(run)
