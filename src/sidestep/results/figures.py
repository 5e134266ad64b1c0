"""Figures of paths and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sidestep.results.published import PublishedPoint

Points = Sequence[tuple[float, float]]

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
    rates = report["keep_rates"]
    figure, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(max(6, 0.22 * len(rates) + 3), 6),
        height_ratios=[1, 2],
        sharex=True,
        layout="constrained",
    )
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
    if len(class_names) <= 20:
        bottom.set_yticks(range(len(class_names)), class_names)
    bottom.set(xlabel="block", ylabel="class")
    figure.colorbar(image, ax=bottom, label="keep rate")
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for index, (name, points) in enumerate(series.items()):
        costs, accuracies = zip(*sorted(points), strict=True)
        axes.plot(costs, accuracies, color=colors[index % 20], marker=_OURS, label=name)
    for index, (name, curves) in enumerate((exits or {}).items(), start=len(series)):
        for kind, points in curves.items():
            costs, accuracies = zip(*points, strict=True)
            style = _STAIRS if kind == "anytime" else _CURVE
            axes.plot(costs, accuracies, color=colors[index % 20], label=f"{name}, {kind}", **style)
    published = [point for point in published if point.place is None]
    theirs = dict.fromkeys(point.system for point in published)
    for index, system in enumerate(theirs):
        for point in (point for point in published if point.system == system):
            unchecked = point.read == "memory"
            axes.scatter(
                point.gflops,
                point.accuracy,
                marker=_UNCHECKED if unchecked else _THEIRS,
                edgecolors=None if unchecked else colors[-1 - index % 20],
                facecolors=colors[-1 - index % 20] if unchecked else "none",
                label=f"{system}, published{' (not checked)' if unchecked else ''}",
            )
    axes.set(xlabel="GFLOPs per image (2 x MACs, routers in)", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
