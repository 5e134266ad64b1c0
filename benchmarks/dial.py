"""Runs with gates at budgets that they were not trained for: what comes out, and whether the engine agrees.

Biases are solved on some images of the validation split, the report is on some of the test split, and the
plan in the engine runs the same test images with the same biases.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import publish, table

from sidestep.data.split import Role
from sidestep.evaluation.budget_points import BudgetPoint, depth_sentence
from sidestep.runs.at_budget import batches_of
from sidestep.runs.export import engine_of_run
from sidestep.runs.gate_budgets import dial_of, survey_gates
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.types import Batch

NAMES = [
    "run", "budget", "bias", "val cost", "off", "test cost", "accuracy", "bits image", "bits class",
    "same decisions", "runs",
]  # fmt: skip
LEGEND = (
    "Costs are shares of the full network's MACs, routers in; `off`: how far the cost on validation is below "
    "the budget; `bits`: mutual information of path and image, and of path and class, on the test images; "
    "`same decisions`: share of gates, over images, in which the engine in float32 decides as PyTorch does; "
    "`runs`: how often the validation images were run for this budget. Rows without a budget are "
    "networks as they were trained."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A run at a budget; `point` is on test images, `same` the share of gates in which the engine agrees."""

    run: str
    budget: float | None
    solved: BudgetPoint
    point: BudgetPoint
    same: float
    tries: int


def some(opened: OpenedRun, split: Role, source: str | None, count: int) -> Callable[[], Iterable[Batch]]:
    """Return what reads so many images of a split, evenly spread over it."""
    kept = list(batches_of(opened, split, source)())
    total = sum(len(batch.labels) for batch in kept)
    every, first, found = max(1, total // count), 0, list[Batch]()
    for batch in kept:
        rows = torch.arange(-first % every, len(batch.labels), every)
        found.append(replace(batch, images=batch.images[rows], labels=batch.labels[rows], statistics=None))
        first += len(batch.labels)
    return lambda: found


def agreement(opened: OpenedRun, batches: Iterable[Batch], biases: Sequence[float], engine: Any) -> float:
    """Return the share of gates in which the engine decides as the network does, which has the biases."""
    same = total = 0
    for batch in batches:
        with torch.inference_mode():
            wanted = opened.network(batch.images).decisions.paths().numpy()
        rows = np.tile(np.asarray(biases, dtype=np.float32), (len(wanted), 1))
        found = engine(batch.images.numpy(), biases=rows).options
        same, total = same + int((found == wanted).sum()), total + wanted.size
    return same / total


def lines_of(run: Path, fractions: Sequence[float], args: Namespace) -> list[Line]:
    """Return a run as it was trained, and at every budget."""
    opened = open_run(run, args.checkpoint)
    opened.turn(None)
    engine = engine_of_run(opened, None, "float32")
    source, count = args.source, args.images
    val, test = some(opened, "val", source, count), some(opened, "test", source, 2 * count)
    dial = dial_of(opened, val, None, timed=False, per_unit=args.per_unit)
    found = []
    for budget in (None, *fractions):
        before = len(dial.seen)
        solved = dial.seen[0].point if budget is None else dial.meet(budget * opened.cost.full)
        biases = dial.biases(solved.asked)
        point = survey_gates(opened, test, None, biases, solved.asked).point
        same = agreement(opened, list(test())[:2], biases, engine)
        tries = len(dial.seen) - before
        found.append(Line(run=run.name, budget=budget, solved=solved, point=point, same=same, tries=tries))
        print(found[-1], flush=True)
    return found


def row(line: Line, full: float) -> list[str]:
    """Return a line of the table."""
    budget, solved, point = line.budget, line.solved, line.point
    off = "" if budget is None else f"{1 - solved.macs / (budget * full):.2%}"
    return [
        line.run,
        "" if budget is None else f"{budget:.0%}",
        f"{solved.asked:+.3f}" if abs(solved.asked) < 1e6 else "all" if solved.asked > 0 else "none",
        f"{solved.macs / full:.2%}",
        off,
        f"{point.macs / full:.2%}",
        f"{point.accuracy:.2%}",
        f"{point.image_bits:.2f}",
        f"{point.class_bits:.2f}",
        f"{line.same:.2%}",
        str(line.tries),
    ]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="runs trained for other budgets, as they are"
    )
    parser.add_argument(
        "--budgets", default="0.3,0.45,0.6,0.75,0.9", help="shares of the full network's MACs"
    )
    parser.add_argument("--images", type=int, default=1000, help="of validation; twice as many to test")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--per-unit", action="store_true")
    parser.add_argument("--source", default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    args.load = os.getloadavg()[0]
    rows, notes = [], []
    fractions = [float(each) for each in args.budgets.split(",")]
    for run in (*args.runs, *args.beside):
        full = open_run(run, args.checkpoint).cost.full
        lines = lines_of(run, [] if run in args.beside else fractions, args)
        rows += [row(line, full) for line in lines]
        bits = [(line.point.image_bits or 0.0, line.point.class_bits or 0.0) for line in lines]
        said = depth_sentence(*map(list, zip(*bits, strict=True)))
        notes += [f"- {run.name}: {said}."] if said else []
    counts = f"{args.images:,} validation images, {2 * args.images:,} test images."
    publish("Gates at other budgets", [LEGEND, counts, table(NAMES, rows), *notes], args)


if __name__ == "__main__":
    main()
