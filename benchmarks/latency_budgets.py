"""Whether a budget in milliseconds is met: ten of them in the engine, solved by a latency book, then timed.

For a run with early exits or a cascade, images of its test split one by one. The book is measured first,
thresholds are solved for each budget on the validation split, and the engine then runs test images under each
of them in turn.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import torch
from measure import Ratio, interleave, options, report

from sidestep.evaluation.exit_curve import calibrate, survey_exits
from sidestep.evaluation.goals import ExitGoal
from sidestep.runs.export import engine_of_run
from sidestep.runs.latency import measure_book
from sidestep.runs.run_folder import data_of, open_run

AIM = 1.1
NUM_BUDGETS, NUM_IMAGES = 10, 500


def compare(run: Path, precision: str, source: str | None, seconds: float) -> list[Ratio]:
    """Return the time of every budget against the budget."""
    book = measure_book(run, "engine", precision=precision, seconds=seconds, source=source)  # type: ignore[arg-type]
    opened = open_run(run, "best")
    val, test = (data_of(opened, split, source) for split in ("val", "test"))
    assert val.val is not None and test.test is not None  # runs with exits have both
    survey = survey_exits(opened.network, val.val.eval_batches(batch_size=1000), opened.cost, book)
    assert survey.ms is not None  # a book was given
    ends = survey.ms.mean(dim=1)
    images = next(iter(test.test.eval_batches(batch_size=NUM_IMAGES))).images.numpy()
    calls, places = {}, torch.linspace(float(ends[0]), float(ends[-1]), NUM_BUDGETS + 2).tolist()[1:-1]
    for budget in places:
        rule = calibrate(survey, ExitGoal(ms=budget)).rule
        engine = engine_of_run(opened, rule, precision)  # type: ignore[arg-type]
        calls[f"{budget:.4f}"] = lambda engine=engine: [
            engine(images[row : row + 1]) for row in range(len(images))
        ]
    ms = interleave(calls, seconds=seconds)
    return [
        Ratio(
            what=f"{run.name}, {book.name}: budget {name} ms",
            median_ms=took / len(images),
            against="budget",
            against_ms=float(name),
            aim=AIM,
        )
        for name, took in ms.items()
    ]


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with early exits, or cascades")
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")


def main() -> None:
    chosen = options("Budgets in milliseconds against what they take", seconds=10.0, more=arguments)
    lines = [
        line
        for run in chosen.runs
        for precision in ("float32", "bfloat16")
        for line in compare(run, precision, chosen.source, chosen.seconds)
    ]
    report("Budgets in milliseconds against what images take, engine, batch 1", lines, chosen)


if __name__ == "__main__":
    main()
