"""Curves of early exits: accuracy over cost, as a table and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sidestep.evaluation.exits import CurvePoint


def save_exit_curve(folder: Path, points: Sequence[CurvePoint]) -> None:
    """Write the points of a curve to `exits.csv`, and draw them in `exits.png`.

    Args:
        folder: an existing one.
        points: anytime and budgeted ones.
    """
    with open(folder / "exits.csv", "w", newline="") as file:
        writer = csv.writer(file)
        num_exits = len(points[0].point.exit_rates)
        rates = [f"exit_rate_{exit}" for exit in range(num_exits)]
        writer.writerow(["kind", "budget_gflops", "gflops", "accuracy", *rates])
        for row in points:
            budget = "" if row.budget_macs is None else 2e-9 * row.budget_macs
            cost = 2e-9 * row.point.macs
            writer.writerow([row.kind, budget, cost, row.point.accuracy, *row.point.exit_rates])
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for kind, marker in (("anytime", "s"), ("budgeted", "o")):
        chosen = [row.point for row in points if row.kind == kind]
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
    figure.savefig(folder / "exits.png", dpi=120)
    plt.close(figure)
