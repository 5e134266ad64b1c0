"""Figures of paths and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


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
