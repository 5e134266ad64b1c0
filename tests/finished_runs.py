"""Run folders as a training leaves them, with figures that a test can follow by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sidestep.evaluation.exit_curve import CurvePoint, ExitCurve
from sidestep.evaluation.thresholds import ExitPoint
from sidestep.results.kept_curve import save_exit_curve

RECIPE: dict[str, Any] = {
    "name": "rdi_net_resnet32",
    "method": {"name": "rdi_net", "target": 0.6, "router": {"dim": 16, "gamma": 0.5}, "srm": {"alpha": 0.0}},
    "model": {"name": "cifar_resnet32", "se_ratio": None, "init": "/home/someone/static.safetensors"},
    "data": {"source": "hfds//data/cifar10"},
    "training": {"seed": 3, "phases": [{"name": "joint", "paths": "uniform", "epochs": 2, "lr": 0.05}]},
}
REPORT: dict[str, Any] = {
    "accuracy": 0.9312,
    "gflops": 0.0801,
    "fraction_of_full": 0.5821,
    "keep_rates": [],
    "keep_rates_per_class": [[0.25], [0.75]],
    "executed_mean": 8.5,
    "executed_std": 1.25,
    "num_paths": 42,
}
EPOCHS: list[dict[str, Any]] = [
    {"step": 10, "train": {}, "seconds": 90.0, "val": {"accuracy": 0.9, "fraction_of_full": 0.6}},
    {"step": 20, "train": {}, "seconds": 20.0, "val": None},
    {"step": 30, "train": {}, "seconds": 10.0, "val": {"accuracy": 0.94, "fraction_of_full": 0.58}},
]


def write_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    best: Mapping[str, Any] | None = None,
    commit: str = "abc123",
) -> Path:
    """Write what a results page reads of a finished run, and return its folder.

    Args:
        folder: a new one.
        settings: changes of the recipe, by dotted name.
        best: changes of the best checkpoint's report; the last one is less accurate.
        commit: of the environment.
    """
    recipe = json.loads(json.dumps(RECIPE))
    for name, value in (settings or {}).items():
        *groups, last = name.split(".")
        place = recipe
        for group in groups:
            place = place[group]
        place[last] = value
    hardware = {"cpu": "Some CPU", "flags": ["avx2"], "cores": 2, "threads": 2}
    environment = {"hardware": hardware, "versions": {"torch": "2.x"}, "commit": commit}
    report = REPORT | dict(best or {})
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "report.json").write_text(json.dumps({"best": report, "last": report | {"accuracy": 0.9299}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EPOCHS))
    return folder


def add_bench(run: Path, rows: Sequence[tuple[str, str, int, float]]) -> Path:
    """Write timings as `sidestep bench` does: runtime, precision, batch size and milliseconds an image."""
    names = ("runtime", "precision", "batch_size", "ms_per_image")
    values = [dict(zip(names, row, strict=True)) | {"ratio_to_best_static": 1.0} for row in rows]
    (run / "bench.json").write_text(json.dumps({"rows": values}))
    return run


def two_exits() -> ExitCurve:
    """Return a curve of two exits, at 10 and 40 M MACs of 50, and of three budgets."""
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
    return ExitCurve(
        criterion="margin",
        temperatures=[1.25, 1.5],
        calibration_errors=[0.01, 0.02],
        raw_calibration_errors=[0.05, 0.06],
        full_macs=50e6,
        points=rows,
    )


def write_exit_run(folder: Path, settings: Mapping[str, Any] | None = None, *, curve: bool = True) -> Path:
    """Write a finished run of a network with two exits, and its curve."""
    write_run(folder, settings, best={"exit_rates": [0.0, 1.0], "accuracy": 0.9, "gflops": 0.08})
    if curve:
        save_exit_curve(folder, two_exits(), "last")
    return folder
