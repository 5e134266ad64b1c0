"""Results pages: what was run, on what, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidestep.errors import OutputError, RecipeError
from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.rivals import STATIC_PYTORCH
from sidestep.files import write_file
from sidestep.results.exit_tables import exit_sections
from sidestep.results.figures import save_accuracy_cost
from sidestep.results.kept_curve import KINDS
from sidestep.results.markdown import table
from sidestep.results.page_data import PageData, page_data, read_results
from sidestep.results.published import published_points
from sidestep.results.recipe_tables import recipe_sections
from sidestep.results.run_result import RunResult
from sidestep.results.timing_tables import timing_sections

Points = list[tuple[float, float]]

_WHAT = """Test split; costs with routers; GFLOPs are 2 x MACs; best epoch by the validation split.
Milliseconds are those of an image in the largest batch of `sidestep bench`, float32: gathered and
the run's static origin in PyTorch, in the same minute, and the network in the native engine."""


def results_page(title: str | None, folders: Sequence[Path]) -> str:
    """Return a markdown page with one row per run, their curves, and how each was made.

    Args:
        title: heading of the page; None is that of the first compact file, or "Results".
        folders: finished run folders and compact files that `save_results` has written, in the order of the
            rows.
    """
    return _page(page_data(folders, title=title))


def save_results(
    out: Path, folders: Sequence[Path], *, title: str | None = None, published: str | None = None
) -> list[Path]:
    """Write a page, its figure (`.png`) and the compact file (`.json`) from which it can be made again.

    Args:
        out: the page, a `.md` file; the others lie beside it under the same name.
        folders: finished run folders and compact files.
        title: heading of the page; by default that of the first compact file, or "Results".
        published: data set whose published points the figure shows; by default the first compact file's.

    Returns:
        What was written: page, compact file and figure.

    Raises:
        RecipeError: for a page that is no `.md` file, or a data set that nothing was published on.
        CheckpointError: for a run that has not been trained to its end.
        OutputError: when a file cannot be written.
    """
    if out.suffix != ".md":
        raise RecipeError(f"the page must be a .md file, got {out}; figure and data get its name")
    compact, figure = out.with_suffix(".json"), out.with_suffix(".png")
    data = replace(page_data(folders, title=title, published=published), figure=figure.name)
    points = [] if data.published is None else published_points(data.published)
    _make(out.parent)
    save_accuracy_cost(figure, _accuracy_cost(data.results), points, _exit_curves(data.results))
    data.save(compact)
    write_file(out, _page(data), what="page")
    return [out, compact, figure]


def accuracy_cost(folders: Sequence[Path]) -> dict[str, Points]:
    """Return GFLOPs and accuracy in percent of the best checkpoints by recipe, named by words that differ.

    Static networks are named by themselves. Runs with a curve of exits are left to `exit_curves`.

    Args:
        folders: finished run folders and compact files.
    """
    return _accuracy_cost(read_results(folders))


def exit_curves(folders: Sequence[Path]) -> dict[str, dict[str, Points]]:
    """Return GFLOPs and accuracy in percent along the curves of early exits, by run folder and kind of curve.

    Args:
        folders: finished run folders and compact files; runs without a curve are left out.
    """
    return _exit_curves(read_results(folders))


def _accuracy_cost(results: Sequence[RunResult]) -> dict[str, Points]:
    static: dict[str, Points] = {}
    others: dict[str, Points] = {}
    for result in results:
        if result.exits is not None:
            continue
        if result.method == "static" and not result.has_exits:
            points = static.setdefault(f"static {result.network}", [])
        else:
            points = others.setdefault(result.recipe_name, [])
        points.append((result.gflops, result.percent))
    return static | dict(zip(_distinct(list(others)), others.values(), strict=True))


def _exit_curves(results: Sequence[RunResult]) -> dict[str, dict[str, Points]]:
    return {
        result.folder: {kind: result.exits.accuracy_cost(kind) for kind in KINDS}
        for result in results
        if result.exits is not None
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of recipes without the words that all of them share."""
    words = [name.split("_") for name in names]
    shared = set(words[0]).intersection(*words) if len(words) > 1 else set()
    short = ["_".join(word for word in name if word not in shared) for name in words]
    return short if all(short) and len(set(short)) == len(short) else list(names)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} of the page could not be made ({error.strerror or error}); choose another place"
        ) from error


def _page(data: PageData) -> str:
    picture = [] if data.figure is None else [f"![Accuracy over cost]({data.figure})", ""]
    lines = [f"# {data.title}", "", *picture, *_WHAT.splitlines(), "", *_rows(data.results)]
    lines += [*exit_sections(data.results), "", "## Validation curves", "", *_curves(data.results)]
    lines += [*timing_sections(data.results), *recipe_sections(data.results)]
    return "\n".join(lines) + "\n"


def _rows(results: Sequence[RunResult]) -> list[str]:
    names = [
        "run", "method", "seed", "best: accuracy %", "GFLOPs", "of static", "last: accuracy %", "GFLOPs",
        "of static", "executed blocks", "paths", "ms gathered", "ms static", "ms engine", "minutes",
    ]  # fmt: skip
    return table(names, [_row(result) for result in results])


def _row(result: RunResult) -> list[str]:
    best, last = result.reports["best"], result.reports["last"]
    return [
        result.folder,
        result.method,
        str(result.recipe["training"]["seed"]),
        *(cell for report in (best, last) for cell in _figures(report)),
        f"{best['executed_mean']:.2f} ± {best['executed_std']:.2f}",
        str(best["num_paths"]),
        *(_milliseconds(result.milliseconds(name)) for name in ("gathered", STATIC_PYTORCH, ENGINE)),
        f"{result.minutes:.1f}",
    ]


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
            f"{100 * accuracy:.2f} @ {100 * fraction:.0f} %" for accuracy, fraction in result.validation
        ]
        lines.append(f"- {result.folder}: " + (", ".join(points) or "not trained"))
    return lines
