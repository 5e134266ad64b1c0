"""Curves of early exits: accuracy over cost, as a record, a table and a picture."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sidestep.evaluation.exit_curve import CurvePoint, ExitCurve
from sidestep.evaluation.thresholds import ExitPoint

EXITS = "exits.json"
KINDS = ("anytime", "budgeted")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCurve:
    """A curve in a run folder.

    Attributes:
        checkpoint: whose it is, "best" or "last".
        curve: anytime and budgeted points.
    """

    checkpoint: str
    curve: ExitCurve

    def points(self, kind: str) -> list[CurvePoint]:
        """Return the points of a kind, "anytime" or "budgeted"."""
        return [row for row in self.curve.points if row.kind == kind]

    def accuracy_cost(self, kind: str) -> list[tuple[float, float]]:
        """Return GFLOPs and accuracy in percent of the points of a kind."""
        return [(2e-9 * row.point.macs, 100 * row.point.accuracy) for row in self.points(kind)]


def save_exit_curve(folder: Path, curve: ExitCurve, checkpoint: str) -> None:
    """Write a curve to `exits.json`, its points to `exits.csv`, and draw them in `exits.png`.

    Args:
        folder: an existing one.
        curve: anytime and budgeted points.
        checkpoint: whose they are.
    """
    record = {"checkpoint": checkpoint} | curve.as_dict()
    (folder / EXITS).write_text(json.dumps(record, indent=1) + "\n")
    _save_table(folder / "exits.csv", curve)
    _save_picture(folder / "exits.png", curve)


def read_exit_curve(folder: Path) -> KeptCurve | None:
    """Return the curve that `save_exit_curve` has left in a folder, or None."""
    if not (folder / EXITS).is_file():
        return None
    values = json.loads((folder / EXITS).read_text())
    checkpoint = values.pop("checkpoint")
    points = [CurvePoint(**row | {"point": ExitPoint(**row["point"])}) for row in values.pop("points")]
    return KeptCurve(checkpoint=checkpoint, curve=ExitCurve(**values, points=points))


def _save_table(path: Path, curve: ExitCurve) -> None:
    num_exits = len(curve.temperatures)
    names = ["kind", "budget_gflops", "budget_fraction", "gflops", "fraction_of_full", "accuracy"]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *(f"exit_rate_{exit}" for exit in range(num_exits))])
        for row in curve.points:
            asked = [None, None] if row.budget_macs is None else _units(row.budget_macs, curve)
            cost = _units(row.point.macs, curve)
            writer.writerow([row.kind, *asked, *cost, row.point.accuracy, *row.point.exit_rates])


def _units(macs: float, curve: ExitCurve) -> list[float]:
    """Return a cost in GFLOPs, and as a fraction of the full network's."""
    return [2e-9 * macs, macs / curve.full_macs]


def _save_picture(path: Path, curve: ExitCurve) -> None:
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
