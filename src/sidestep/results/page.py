"""Results pages: what was run, on what, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.budget_points import BudgetCurve
from sidestep.evaluation.rivals import STATIC_PYTORCH
from sidestep.files import write_file
from sidestep.results.budget_tables import budget_sections
from sidestep.results.exit_tables import exit_sections
from sidestep.results.figures import ExitLines, Line, Point, save_accuracy_cost
from sidestep.results.kept_curve import KINDS
from sidestep.results.markdown import check_page, table
from sidestep.results.page_data import PageData, page_data, read_results
from sidestep.results.paired import paired_section
from sidestep.results.published import published_points
from sidestep.results.recipe_tables import recipe_sections
from sidestep.results.run_groups import RunGroup, lines_of, mean_and_deviation, run_groups, with_deviation
from sidestep.results.run_result import RunResult
from sidestep.results.timing_tables import timing_sections

_WHAT = """Test split; costs with routers; GFLOPs are 2 x MACs; best epoch by the validation split.
Milliseconds are those of an image in the largest batch of `sidestep bench`, float32: gathered and
the run's static origin in PyTorch, in the same minute, and the network in the native engine."""
_SEEDS = """Runs that differ in their seed alone: mean and deviation of a sample."""
# What a path knows of the image and of its class.
_BITS = ("bits of image", "bits of class")
_MOST_EPOCHS = 8
_CURVES = f"""Accuracy at a share of the static network's MACs, epoch by epoch; of more than {_MOST_EPOCHS}
epochs some, by number, the best one among them."""


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
    check_page(out)
    compact, figure = out.with_suffix(".json"), out.with_suffix(".png")
    data = replace(page_data(folders, title=title, published=published), figure=figure.name)
    points = [] if data.published is None else published_points(data.published)
    save_accuracy_cost(figure, _accuracy_cost(data.results), points, _exit_curves(data.results))
    data.save(compact)
    write_file(out, _page(data), what="page")
    return [out, compact, figure]


def accuracy_cost(folders: Sequence[Path]) -> list[Line]:
    """Return GFLOPs and accuracy in percent of the best checkpoints, named by their run folders.

    Runs that differ in their seed alone are one point, with its deviation; a line joins points that differ in
    one setting, which is a number. Runs with a curve of exits are left to `exit_curves`.

    Args:
        folders: finished run folders and compact files.
    """
    return _accuracy_cost(read_results(folders))


def exit_curves(folders: Sequence[Path]) -> list[ExitLines]:
    """Return GFLOPs and accuracy in percent along the curves of early exits, of seeds their means.

    Args:
        folders: finished run folders and compact files; runs without a curve are left out.
    """
    return _exit_curves(read_results(folders))


def _accuracy_cost(results: Sequence[RunResult]) -> list[Line]:
    alone = [result for result in results if result.exits is None and result.budgets is None]
    lines = [
        Line(
            name=name,
            points=tuple(_point(group.gflops, group.percent) for group in line),
            family=line[0].results[0].recipe_name,
        )
        for name, line in lines_of(run_groups(alone))
    ]
    for group in run_groups([result for result in results if result.budgets is not None]):
        points = _mean_points([_budget_points(result.budgets) for result in group.results if result.budgets])
        lines.append(Line(name=group.name, points=points, family=group.results[0].recipe_name))
    return lines


def _budget_points(curve: BudgetCurve) -> list[tuple[float, float]]:
    """Return GFLOPs and accuracy in percent at every budget."""
    return [(2e-9 * point.macs, 100 * point.accuracy) for point in curve.points]


def _exit_curves(results: Sequence[RunResult]) -> list[ExitLines]:
    groups = run_groups([result for result in results if result.exits is not None])
    return [
        ExitLines(name=group.name, curves={kind: _mean_curve(group, kind) for kind in KINDS})
        for group in groups
    ]


def _mean_curve(group: RunGroup, kind: str) -> tuple[Point, ...]:
    """Return the points of a curve; of several seeds the means at every exit, or at every budget."""
    return _mean_points(
        [result.exits.accuracy_cost(kind) for result in group.results if result.exits is not None]
    )


def _mean_points(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[Point, ...]:
    """Return the means of curves, point by point."""
    return tuple(
        _point(*(mean_and_deviation(values) for values in zip(*points, strict=True)))
        for points in zip(*curves, strict=False)
    )


def _point(gflops: tuple[float, float], percent: tuple[float, float]) -> Point:
    return Point(
        gflops=gflops[0], percent=percent[0], gflops_deviation=gflops[1], percent_deviation=percent[1]
    )


def _page(data: PageData) -> str:
    picture = [] if data.figure is None else [f"![Accuracy over cost]({data.figure})", ""]
    lines = [f"# {data.title}", "", *picture, *_WHAT.splitlines(), "", *_rows(data.results)]
    lines += [
        *_over_seeds(data.results),
        *paired_section(data.results),
        *budget_sections(data.results),
        *exit_sections(data.results),
        *_curves(data.results),
    ]
    lines += [*timing_sections(data.results), *recipe_sections(data.results)]
    return "\n".join(lines) + "\n"


def _rows(results: Sequence[RunResult]) -> list[str]:
    informed = _informed(results)
    names = [
        "run", "method", "seed", "best: accuracy %", "GFLOPs", "of static", "last: accuracy %", "GFLOPs",
        "of static", "executed blocks", "paths", *(_BITS if informed else ()), "ms gathered", "ms static",
        "ms engine", "minutes",
    ]  # fmt: skip
    return table(names, [_row(result, informed=informed) for result in results])


def _informed(results: Sequence[RunResult]) -> bool:
    """Return whether a report says what paths know of images and classes; older ones do not."""
    return any(result.reports["best"].get("image_bits") is not None for result in results)


def _row(result: RunResult, *, informed: bool) -> list[str]:
    best, last = result.reports["best"], result.reports["last"]
    return [
        result.folder,
        result.method,
        str(result.recipe["training"]["seed"]),
        *(cell for report in (best, last) for cell in _figures(report)),
        f"{best['executed_mean']:.2f} ± {best['executed_std']:.2f}",
        str(best["num_paths"]),
        *(_bits([best]) if informed else ()),
        *(_milliseconds(result.milliseconds(name)) for name in ("gathered", STATIC_PYTORCH, ENGINE)),
        f"{result.minutes:.1f}",
    ]


def _figures(report: dict[str, Any]) -> list[str]:
    return [
        f"{100 * report['accuracy']:.2f}",
        f"{report['gflops']:.4f}",
        f"{100 * report['fraction_of_full']:.1f} %",
    ]


def _bits(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells of `_BITS`, over all reports."""
    found = [[report.get(name) for report in reports] for name in ("image_bits", "class_bits")]
    known = [[value for value in values if value is not None] for values in found]
    return [with_deviation(values, 2) if len(values) == len(reports) else "-" for values in known]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _over_seeds(results: Sequence[RunResult]) -> list[str]:
    groups = [group for group in run_groups(results) if len(group.results) > 1]
    if not groups:
        return []
    informed = _informed([result for group in groups for result in group.results])
    names = [
        "runs", "method", "seeds", "best: accuracy %", "GFLOPs", "of static", "last: accuracy %",
        *(_BITS if informed else ()), "minutes",
    ]  # fmt: skip
    rows = [_group_row(group, informed=informed) for group in groups]
    return ["", "## Over seeds", "", *_SEEDS.splitlines(), "", *table(names, rows)]


def _group_row(group: RunGroup, *, informed: bool) -> list[str]:
    best, last = ([result.reports[name] for result in group.results] for name in ("best", "last"))
    return [
        group.name,
        group.results[0].method,
        ", ".join(map(str, group.seeds)),
        with_deviation([100 * report["accuracy"] for report in best], 2),
        with_deviation([report["gflops"] for report in best], 4),
        with_deviation([100 * report["fraction_of_full"] for report in best], 1) + " %",
        with_deviation([100 * report["accuracy"] for report in last], 2),
        *(_bits(best) if informed else ()),
        with_deviation([result.minutes for result in group.results], 1),
    ]


def _curves(results: Sequence[RunResult]) -> list[str]:
    if all(_has_no_validation(result) for result in results):
        return ["", "All runs trained on the whole training split, and their best checkpoint is the last."]
    rows = [f"- {result.folder}: {_curve(result)}" for result in results]
    return ["", "## Validation curves", "", *_CURVES.splitlines(), "", *rows]


def _has_no_validation(result: RunResult) -> bool:
    return not result.validation and result.minutes > 0


def _curve(result: RunResult) -> str:
    validation = result.validation
    if not validation:
        return "no validation split, the last epoch counts" if _has_no_validation(result) else "not trained"
    words = [f"{100 * accuracy:.2f} @ {100 * fraction:.0f} %" for accuracy, fraction in validation]
    if len(words) <= _MOST_EPOCHS:
        return ", ".join(words)
    last = len(words) - 1
    shown = {round(place * last / (_MOST_EPOCHS - 2)) for place in range(_MOST_EPOCHS - 1)}
    shown.add(max(range(len(words)), key=lambda epoch: validation[epoch][0]))
    return ", ".join(f"{epoch + 1}: {words[epoch]}" for epoch in sorted(shown))
