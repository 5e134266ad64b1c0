"""Figures of paths and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidestep.errors import RecipeError
from sidestep.evaluation.exit_curve import ExitCurve
from sidestep.files import write_file
from sidestep.results.published import PublishedPoint

Points = Sequence[tuple[float, float]]

_DPI = 120
_MOST_NAMED = 20
_OURS, _THEIRS, _UNCHECKED = "o", "s", "x"
_STAIRS: dict[str, Any] = {"marker": "^", "linestyle": "--", "linewidth": 1, "drawstyle": "steps-post"}
_CURVE: dict[str, Any] = {"marker": ".", "linestyle": "-"}


def save_keep_rates(path: Path, report: dict[str, Any], class_names: list[str]) -> None:
    """Draw the keep rate of every unit, over all images and per class, as the paper's figure 9 does.

    Args:
        path: where the picture goes.
        report: a `Report` as plain values.
        class_names: one per class; with more than 20 classes the rows stay unnamed.
    """
    save_figure(path, keep_rates_figure(report, class_names))


def keep_rates_figure(report: dict[str, Any], class_names: list[str]) -> Figure:
    """Return the figure that `save_keep_rates` writes: bars over all images, a map of classes below."""
    rates = report["keep_rates"]
    figure = Figure(figsize=(max(6, 0.22 * len(rates) + 3), 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1, 2], sharex=True)
    top.bar(range(1, len(rates) + 1), rates, color="#3b6ea5")
    top.set(ylim=(0, 1.05), ylabel="keep rate")
    top.set_title(
        f"{report['accuracy']:.2%} at {report['gflops']:.4f} GFLOPs "
        f"({report['fraction_of_full']:.1%} of the static network), {report['num_paths']} paths"
    )
    image = bottom.imshow(
        report["keep_rates_per_class"],
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="viridis",
        extent=(0.5, len(rates) + 0.5, len(class_names) - 0.5, -0.5),
    )
    if len(class_names) <= _MOST_NAMED:
        bottom.set_yticks(range(len(class_names)), class_names)
    bottom.set(xlabel="block", ylabel="class")
    figure.colorbar(image, ax=bottom, label="keep rate")
    return figure


def save_accuracy_cost(
    path: Path,
    series: Mapping[str, Points],
    published: Sequence[PublishedPoint] = (),
    exits: Mapping[str, Mapping[str, Points]] | None = None,
) -> None:
    """Draw accuracy over cost, as figure 6 of the RDI-Net paper does, all costs in GFLOPs of 2 x MACs.

    Args:
        path: where the picture goes.
        series: GFLOPs and accuracy in percent of runs by name; those of one name are joined by a line.
        published: points of papers, drawn as squares, and as crosses where they come from memory alone; those
            of ablations are left out.
        exits: GFLOPs and accuracy in percent of runs with early exits by name and kind of curve; anytime ones
            are stairs, since an exit's answer stands until the next one has its own.
    """
    save_figure(path, accuracy_cost_figure(series, published, exits or {}))


def accuracy_cost_figure(
    series: Mapping[str, Points],
    published: Sequence[PublishedPoint],
    exits: Mapping[str, Mapping[str, Points]],
) -> Figure:
    """Return the figure that `save_accuracy_cost` writes."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        costs, accuracies = zip(*sorted(points), strict=True)
        axes.plot(costs, accuracies, color=_color(index), marker=_OURS, label=name)
    for index, (name, curves) in enumerate(exits.items(), start=len(series)):
        for kind, points in curves.items():
            costs, accuracies = zip(*points, strict=True)
            style = _STAIRS if kind == "anytime" else _CURVE
            axes.plot(costs, accuracies, color=_color(index), label=f"{name}, {kind}", **style)
    _draw_published(axes, [point for point in published if point.place is None])
    axes.set(xlabel="GFLOPs per image (2 x MACs, routers in)", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def exit_figure(curve: ExitCurve) -> Figure:
    """Return a figure of accuracy over cost: anytime exits as stairs, budgets as a line."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for kind, marker in (("anytime", "s"), ("budgeted", "o")):
        chosen = [row.point for row in curve.points if row.kind == kind]
        costs, accuracies = [2e-9 * p.macs for p in chosen], [100 * p.accuracy for p in chosen]
        axes.plot(
            costs,
            accuracies,
            marker=marker,
            label=kind,
            drawstyle="steps-post" if marker == "s" else "default",
        )
    axes.set(xlabel="GFLOPs per image (2 x MACs)", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format that the ending of its name says.

    Raises:
        RecipeError: for an ending that stands for no format.
        OutputError: when it cannot be written.
    """
    ending = path.suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise RecipeError(
            f"figure must end in one of {', '.join(sorted(known))}, got {path}; png suits pages"
        )
    content = BytesIO()
    figure.savefig(content, format=ending, dpi=_DPI)
    write_file(path, content.getvalue(), what="figure")


def _draw_published(axes: Axes, points: Sequence[PublishedPoint]) -> None:
    colors = {
        system: _color(-1 - index) for index, system in enumerate(dict.fromkeys(p.system for p in points))
    }
    for point in points:
        unchecked, color = point.read == "memory", colors[point.system]
        axes.scatter(
            point.gflops,
            point.accuracy,
            marker=_UNCHECKED if unchecked else _THEIRS,
            edgecolors=None if unchecked else color,
            facecolors=color if unchecked else "none",
            label=f"{point.system}, published{' (not checked)' if unchecked else ''}",
        )


def _color(index: int) -> Any:
    """Return a colour of the palette, from its end for negative numbers."""
    return colormaps["tab20"](index % 20)
