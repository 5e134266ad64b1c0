"""Figures of paths and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sidestep.errors import RecipeError
from sidestep.evaluation.budget_points import BudgetCurve
from sidestep.evaluation.exit_curve import ExitCurve
from sidestep.files import write_file
from sidestep.results.figure_style import PALETTE, in_style
from sidestep.results.published import PublishedPoint

_DPI = 120
# Inches: the bars over all images; a row of the map with a name in a good size, and the least in which one
# can be read; the map at least and at most.
_BARS, _ROW, _LEAST_ROW, _LEAST_MAP, _MOST_MAP = 2.0, 0.18, 0.09, 4.0, 40.0
_POINTS_PER_INCH = 72
_CHARACTER = 0.08
_LONGEST_NAME = 48
_MOST_LABELS = 36
# Markers, one after the other where colours come again.
_OURS, _THEIRS, _UNCHECKED = "o^Dv<>P*Xdh|_34", "spH8", "x+12"
_STAIRS: dict[str, Any] = {"marker": "^", "linestyle": "--", "linewidth": 1, "drawstyle": "steps-post"}
_CURVE: dict[str, Any] = {"marker": ".", "linestyle": "-"}


def save_keep_rates(path: Path, report: dict[str, Any], class_names: list[str]) -> None:
    """Draw the keep rate of every unit, over all images and per class, as the paper's figure 9 does.

    Args:
        path: where the picture goes.
        report: a `Report` as plain values.
        class_names: one per class; the map grows with them, and with very many of them every n-th is named.
    """
    save_figure(path, keep_rates_figure(report, class_names))


def keep_rates_figure(report: dict[str, Any], class_names: list[str]) -> Figure:
    """Return the figure that `save_keep_rates` writes: bars over all images, a map of classes below."""
    rates = report["keep_rates"]
    height = min(max(_LEAST_MAP, _ROW * len(class_names)), _MOST_MAP)
    width = max(4.5, 0.22 * len(rates) + 1.5) + _CHARACTER * min(
        _LONGEST_NAME, max(map(len, class_names), default=0)
    )
    figure = Figure(figsize=(width, _BARS + height), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[_BARS, height], sharex=True)
    in_style(top, ylim=(0, 1.05), ylabel="keep rate")
    top.bar(range(1, len(rates) + 1), rates, color=PALETTE[0])
    figure.suptitle(
        f"{report['accuracy']:.2%} at {report['gflops']:.4f} GFLOPs "
        f"({report['fraction_of_full']:.1%} of the static network), {report['num_paths']} paths",
        fontsize=10,
    )
    image = bottom.imshow(
        report["keep_rates_per_class"],
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="viridis",
        extent=(0.5, len(rates) + 0.5, len(class_names) - 0.5, -0.5),
    )
    _name_rows(bottom, class_names, height)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bottom.set(xlabel="block", ylabel="class")
    figure.colorbar(image, ax=bottom, label="keep rate")
    return figure


def _name_rows(axes: Axes, names: Sequence[str], height: float) -> None:
    """Name as many rows of a map as can be read: all, or every n-th.

    Args:
        axes: of the map.
        names: of the rows, as the user has them: a dollar sign begins no formula.
        height: of the map in inches.
    """
    step = max(1, ceil(len(names) * _LEAST_ROW / height))
    shown = range(0, len(names), step)
    size = min(10.0, _POINTS_PER_INCH * height / max(1, len(shown)) * 0.85)
    labels = [_drawable(names[row]) for row in shown]
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in labels]
    axes.set_yticks(list(shown), short, fontsize=size)


def _drawable(name: str) -> str:
    """Return a user's name as matplotlib shows it: no formula, nothing hidden, all of it characters."""
    text = name.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run, or several that differ in their seed alone.

    Attributes:
        gflops: mean cost of an image, of 2 x MACs.
        percent: accuracy.
        gflops_deviation: of the cost over seeds, 0 of one run.
        percent_deviation: of the accuracy over seeds, 0 of one run.
    """

    gflops: float
    percent: float
    gflops_deviation: float = 0.0
    percent_deviation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points that are joined in the order of their costs.

    Attributes:
        name: in the legend.
        points: at least one.
        family: lines of one family have one colour and other markers; None is a family of its own.
    """

    name: str
    points: tuple[Point, ...]
    family: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitLines:
    """Curves of a network with early exits, by kind; anytime ones are stairs, since an exit's answer stands
    until the next one has its own."""

    name: str
    curves: Mapping[str, tuple[Point, ...]]


def save_accuracy_cost(
    path: Path,
    lines: Sequence[Line],
    published: Sequence[PublishedPoint] = (),
    exits: Sequence[ExitLines] = (),
) -> None:
    """Draw accuracy over cost, as figure 6 of the RDI-Net paper does, all costs in GFLOPs of 2 x MACs.

    Args:
        path: where the picture goes.
        lines: runs; deviations over seeds are error bars.
        published: points of papers, drawn hollow, and as crosses where they come from memory alone; those
            of ablations are left out.
        exits: runs with early exits.
    """
    save_figure(path, accuracy_cost_figure(lines, published, exits))


def accuracy_cost_figure(
    lines: Sequence[Line], published: Sequence[PublishedPoint], exits: Sequence[ExitLines]
) -> Figure:
    """Return the figure that `save_accuracy_cost` writes."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = in_style(
        figure.subplots(),
        xlabel="GFLOPs per image (2 x MACs, routers in)",
        ylabel="top-1 accuracy, %",
    )
    families: dict[object, list[Line]] = {}
    for line in lines:
        families.setdefault(line.family or id(line), []).append(line)
    for index, family in enumerate(families.values()):
        # Colours that come a second time have other markers.
        markers = islice(cycle(_OURS), index // len(PALETTE), None)
        for line, marker in zip(family, markers, strict=False):
            points = sorted(line.points, key=lambda point: point.gflops)
            _draw(axes, points, color=_color(index), label=_drawable(line.name), marker=marker)
    for index, network in enumerate(exits, start=len(families)):
        for kind, curve in network.curves.items():
            style = _STAIRS if kind == "anytime" else _CURVE
            _draw(axes, curve, color=_color(index), label=_drawable(f"{network.name}, {kind}"), **style)
    _draw_published(axes, [point for point in published if point.place is None])
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    # A legend beside the axes takes as much height as they have, and then another column.
    columns = ceil(len(handles) / _MOST_LABELS)
    axes.legend(
        handles.values(),
        handles.keys(),
        fontsize=7,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        ncols=max(1, columns),
    )
    return figure


def _draw(axes: Axes, points: Sequence[Point], *, color: Any, label: str, **style: Any) -> None:
    costs, accuracies = [point.gflops for point in points], [point.percent for point in points]
    axes.plot(costs, accuracies, color=color, label=label, **style)
    spread = [(point.gflops_deviation, point.percent_deviation) for point in points]
    if any(any(deviations) for deviations in spread):
        wide, high = zip(*spread, strict=True)
        axes.errorbar(costs, accuracies, xerr=wide, yerr=high, fmt="none", ecolor=color, capsize=3, alpha=0.8)


def exit_figure(curve: ExitCurve) -> Figure:
    """Return a figure of accuracy over cost: anytime exits as stairs, budgets as a line."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = in_style(figure.subplots(), xlabel="GFLOPs per image (2 x MACs)", ylabel="top-1 accuracy, %")
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
    axes.legend()
    return figure


def budget_figure(curve: BudgetCurve) -> Figure:
    """Return a figure of accuracy over cost of one network at many budgets."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = in_style(figure.subplots(), xlabel="GFLOPs per image (2 x MACs)", ylabel="top-1 accuracy, %")
    costs, accuracies = zip(*((2e-9 * p.macs, 100 * p.accuracy) for p in curve.points), strict=True)
    axes.plot(costs, accuracies, marker="o")
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
    systems = list(dict.fromkeys(point.system for point in points))
    for point in points:
        index = systems.index(point.system)
        unchecked, color = point.read == "memory", _color(-1 - index)
        markers = _UNCHECKED if unchecked else _THEIRS
        axes.scatter(
            point.gflops,
            point.accuracy,
            marker=markers[index // len(PALETTE) % len(markers)],
            edgecolors=None if unchecked else color,
            facecolors=color if unchecked else "none",
            label=f"{point.system}, published{' (not checked)' if unchecked else ''}",
        )


def _color(index: int) -> str:
    """Return a colour of the palette, from its end for negative numbers."""
    return PALETTE[index % len(PALETTE)]
