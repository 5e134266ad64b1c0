"""Curves of early exits and budgets: accuracy over cost, as a record, a table and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from sidestep.evaluation.budget_points import BudgetCurve, BudgetPoint
from sidestep.evaluation.exit_curve import CurvePoint, ExitCurve
from sidestep.evaluation.thresholds import ExitPoint
from sidestep.files import are_numbers, write_file
from sidestep.results.figures import budget_figure, exit_figure, save_figure

EXITS, BUDGETS = "exits.json", "budgets.json"
KINDS = ("anytime", "budgeted")
Point = TypeVar("Point")


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

    def as_dict(self) -> dict[str, Any]:
        """Return the curve as plain values, ready for JSON."""
        return {"checkpoint": self.checkpoint} | self.curve.as_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KeptCurve:
        """Return the curve that `as_dict` was given."""
        points = [CurvePoint(**row | {"point": _point(ExitPoint, row["point"])}) for row in values["points"]]
        numbers = [[row.budget_macs, row.thresholds, row.asked] for row in points]
        if not all(map(are_numbers, (numbers, values["temperatures"], values["full_macs"]))):
            raise ValueError("a budget, a threshold or a temperature is no number")
        rest = {key: value for key, value in values.items() if key not in ("checkpoint", "points")}
        return cls(checkpoint=values["checkpoint"], curve=ExitCurve(**rest, points=points))


def save_exit_curve(folder: Path, curve: ExitCurve, checkpoint: str) -> None:
    """Write a curve to `exits.json`, its points to `exits.csv`, and draw them in `exits.png`.

    Args:
        folder: an existing one.
        curve: anytime and budgeted points.
        checkpoint: whose they are.
    """
    record = KeptCurve(checkpoint=checkpoint, curve=curve).as_dict()
    write_file(folder / EXITS, json.dumps(record, indent=1) + "\n", what="curve")
    write_file(folder / "exits.csv", _table(curve), what="table")
    save_figure(folder / "exits.png", exit_figure(curve))


def save_budget_curve(folder: Path, curve: BudgetCurve, checkpoint: str) -> None:
    """Write a curve to `budgets.json`, its points to `budgets.csv`, and draw them in `budgets.png`.

    Args:
        folder: an existing one.
        curve: of a network at many budgets.
        checkpoint: whose it is.
    """
    record = {"checkpoint": checkpoint} | curve.as_dict()
    write_file(folder / BUDGETS, json.dumps(record, indent=1) + "\n", what="curve")
    text = StringIO(newline="")
    writer = csv.writer(text)
    names = ["asked", "budget_gflops", "budget_fraction", "gflops", "fraction_of_full", "ms", "accuracy"]
    writer.writerow([*names, "image_bits", "class_bits"])
    for budget, point in zip(curve.budgets_macs, curve.points, strict=True):
        costs = [*_units(budget, curve.full_macs), *_units(point.macs, curve.full_macs)]
        bits = [point.image_bits, point.class_bits]
        writer.writerow([point.asked, *costs, point.ms, point.accuracy, *bits])
    write_file(folder / "budgets.csv", text.getvalue(), what="table")
    save_figure(folder / "budgets.png", budget_figure(curve))


def read_budget_curve(path: Path) -> BudgetCurve:
    """Return the curve that `save_budget_curve` has left in a file."""
    return budget_curve_from(json.loads(path.read_bytes()))


def budget_curve_from(values: Mapping[str, Any]) -> BudgetCurve:
    """Return the curve that its `as_dict` has given."""
    points = [_point(BudgetPoint, point) for point in values["points"]]
    if not are_numbers([values["full_macs"], values["budgets_macs"]]):
        raise ValueError("a budget is no number")
    return BudgetCurve(
        full_macs=values["full_macs"],
        budgets_macs=values["budgets_macs"],
        points=points,
        # Curves from before gates had a dial do not say.
        by_dial=values.get("by_dial", False),
    )


def read_exit_curve(path: Path) -> KeptCurve:
    """Return the curve that `save_exit_curve` has left in a file."""
    return KeptCurve.from_dict(json.loads(path.read_bytes()))


def _point(kind: Callable[..., Point], values: Mapping[str, Any]) -> Point:
    """Return a point of plain values, which have to be numbers."""
    float(values["accuracy"]) + float(values["macs"])
    if not all(map(are_numbers, values.values())):
        raise ValueError("a point has what is no number")
    return kind(**values)


def _table(curve: ExitCurve) -> str:
    num_exits = len(curve.temperatures)
    names = ["kind", "budget_gflops", "budget_fraction", "gflops", "fraction_of_full", "ms", "accuracy"]
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*names, *(f"exit_rate_{exit}" for exit in range(num_exits))])
    for row in curve.points:
        asked = [None, None] if row.budget_macs is None else _units(row.budget_macs, curve.full_macs)
        cost = _units(row.point.macs, curve.full_macs)
        writer.writerow([row.kind, *asked, *cost, row.point.ms, row.point.accuracy, *row.point.exit_rates])
    return text.getvalue()


def _units(macs: float, full_macs: float) -> list[float]:
    """Return a cost in GFLOPs, and as a fraction of the full network's."""
    return [2e-9 * macs, macs / full_macs]
