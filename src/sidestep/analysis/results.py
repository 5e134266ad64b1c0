"""Results pages: what was run, on what, and what came out, read from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidestep.errors import CheckpointError
from sidestep.evaluation.environment import in_words
from sidestep.evaluation.runtimes import STATIC_PYTORCH

BENCH = "bench.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run folder says about itself.

    Attributes:
        folder: its name.
        recipe: resolved recipe as plain values.
        environment: hardware, versions and commit it was trained with.
        reports: best and last checkpoint on the test split.
        epochs: rows of metrics.jsonl.
        bench: what `sidestep bench` last measured, or None.
    """

    folder: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    epochs: list[dict[str, Any]]
    bench: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        """Return the name of the method."""
        return str(self.recipe["method"]["name"])

    @property
    def minutes(self) -> float:
        """Return the wall time of all epochs, validation included."""
        return sum(float(row["seconds"]) for row in self.epochs) / 60

    def milliseconds(self, runtime: str) -> float | None:
        """Return the float32 milliseconds per image of a runtime at the largest batch measured, or None.

        Args:
            runtime: as `BenchRow` has it.
        """
        rows = [] if self.bench is None else self.bench["rows"]
        found = [row for row in rows if row["runtime"] == runtime and row["precision"] == "float32"]
        return max(found, key=lambda row: int(row["batch_size"]))["ms_per_image"] if found else None


def read_result(folder: Path) -> RunResult:
    """Return what a finished run folder holds.

    Raises:
        CheckpointError: when the run has not been trained to its end.
    """
    try:
        return RunResult(
            folder=folder.name,
            recipe=yaml.safe_load((folder / "recipe.yaml").read_text()),
            environment=json.loads((folder / "environment.json").read_text()),
            reports=json.loads((folder / "report.json").read_text()),
            epochs=[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
            bench=json.loads((folder / BENCH).read_text()) if (folder / BENCH).is_file() else None,
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"run {folder} must be trained to its end, but {Path(error.filename).name} is missing; "
            "finish it with --resume"
        ) from error


def accuracy_cost(folders: Sequence[Path]) -> dict[str, list[tuple[float, float]]]:
    """Return GFLOPs and accuracy in percent of the best checkpoints by recipe, named by words that differ.

    Args:
        folders: finished run folders.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for result in map(read_result, folders):
        best = result.reports["best"]
        points = series.setdefault(str(result.recipe["name"]), [])
        points.append((float(best["gflops"]), 100 * float(best["accuracy"])))
    return dict(zip(_distinct(list(series)), series.values(), strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of recipes without the words that all of them share."""
    words = [name.split("_") for name in names]
    shared = set(words[0]).intersection(*words) if len(words) > 1 else set()
    short = ["_".join(word for word in name if word not in shared) for name in words]
    return short if all(short) and len(set(short)) == len(short) else list(names)


def results_page(title: str, folders: Sequence[Path]) -> str:
    """Return a markdown page with one row per run, their curves, and how each was made.

    Args:
        title: heading of the page.
        folders: finished run folders, in the order of the rows.
    """
    results = [read_result(folder) for folder in folders]
    lines = [f"# {title}", "", *_table(results), "", "## Validation curves", "", *_curves(results)]
    lines += ["", "## How each was made", ""]
    for result in results:
        lines += _provenance(result)
    return "\n".join(lines) + "\n"


def _table(results: Sequence[RunResult]) -> list[str]:
    lines = [
        "Test split; costs with routers; GFLOPs are 2 x MACs; best epoch by the validation split.",
        "Milliseconds are those of an image in the largest batch of `sidestep bench`, float32 in PyTorch:",
        "gathered, and beside it the run's static origin in the same minute.",
        "",
        "| run | method | seed | best: accuracy % | GFLOPs | of static "
        "| last: accuracy % | GFLOPs | of static | executed blocks | paths | ms gathered | ms static "
        "| minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        best, last = result.reports["best"], result.reports["last"]
        cells = [
            result.folder,
            result.method,
            str(result.recipe["training"]["seed"]),
            *(cell for report in (best, last) for cell in _figures(report)),
            f"{best['executed_mean']:.2f} ± {best['executed_std']:.2f}",
            str(best["num_paths"]),
            *(_milliseconds(result.milliseconds(name)) for name in ("gathered", STATIC_PYTORCH)),
            f"{result.minutes:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figures(report: dict[str, Any]) -> list[str]:
    return [
        f"{100 * report['accuracy']:.2f}",
        f"{report['gflops']:.4f}",
        f"{100 * report['fraction_of_full']:.1f} %",
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _curves(results: Sequence[RunResult]) -> list[str]:
    lines = []
    for result in results:
        points = [
            f"{100 * row['val']['accuracy']:.2f} @ {100 * row['val']['fraction_of_full']:.0f} %"
            for row in result.epochs
            if row.get("val")
        ]
        lines.append(f"- {result.folder}: " + (", ".join(points) or "not trained"))
    return lines


def _provenance(result: RunResult) -> list[str]:
    environment = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return [
        f"### {result.folder}",
        "",
        f"Commit {environment['commit']}, {in_words(environment['hardware'])}, {versions}.",
        "",
        "```yaml",
        yaml.safe_dump(_without_folders(result.recipe), sort_keys=False, default_flow_style=None).strip(),
        "```",
        "",
    ]


def _without_folders(values: Any) -> Any:
    """Return a recipe with local files by name alone: a page says what was run, not on whose disk."""
    if isinstance(values, dict):
        return {key: _without_folders(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_folders(value) for value in values]
    if isinstance(values, str) and ("//" in values or values.startswith(("/", "~", "."))):
        return Path(values).name
    return values
