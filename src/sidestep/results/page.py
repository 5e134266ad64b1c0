"""Results pages: what was run, on what, and what came out, read from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sidestep.evaluation.environment import in_words
from sidestep.evaluation.rivals import STATIC_PYTORCH
from sidestep.results.exit_tables import exit_sections
from sidestep.results.kept_curve import KINDS
from sidestep.results.run_result import RunResult, read_result
from sidestep.targets.native_engine import ENGINE

Points = list[tuple[float, float]]


def accuracy_cost(folders: Sequence[Path]) -> dict[str, Points]:
    """Return GFLOPs and accuracy in percent of the best checkpoints by recipe, named by words that differ.

    Static networks are named by themselves. Runs with a curve of exits are left to `exit_curves`.

    Args:
        folders: finished run folders.
    """
    static: dict[str, Points] = {}
    others: dict[str, Points] = {}
    for result in map(read_result, folders):
        if result.exits is not None:
            continue
        if result.method == "static" and not result.has_exits:
            points = static.setdefault(f"static {result.network}", [])
        else:
            points = others.setdefault(result.recipe_name, [])
        points.append((result.gflops, result.percent))
    return static | dict(zip(_distinct(list(others)), others.values(), strict=True))


def exit_curves(folders: Sequence[Path]) -> dict[str, dict[str, Points]]:
    """Return GFLOPs and accuracy in percent along the curves of early exits, by run folder and kind of curve.

    Args:
        folders: finished run folders; those without a curve are left out.
    """
    return {
        result.folder: {kind: result.exits.accuracy_cost(kind) for kind in KINDS}
        for result in map(read_result, folders)
        if result.exits is not None
    }


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
    lines = [f"# {title}", "", *_table(results), *exit_sections(results)]
    lines += ["", "## Validation curves", "", *_curves(results)]
    lines += ["", "## How each was made", ""]
    for result in results:
        lines += _provenance(result)
    return "\n".join(lines) + "\n"


def _table(results: Sequence[RunResult]) -> list[str]:
    lines = [
        "Test split; costs with routers; GFLOPs are 2 x MACs; best epoch by the validation split.",
        "Milliseconds are those of an image in the largest batch of `sidestep bench`, float32: gathered and",
        "the run's static origin in PyTorch, in the same minute, and the network in the native engine.",
        "",
        "| run | method | seed | best: accuracy % | GFLOPs | of static "
        "| last: accuracy % | GFLOPs | of static | executed blocks | paths "
        "| ms gathered | ms static | ms engine | minutes |",
        "|" + " --- |" * 15,
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
            *(_milliseconds(result.milliseconds(name)) for name in ("gathered", STATIC_PYTORCH, ENGINE)),
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
