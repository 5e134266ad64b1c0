"""Whether a budget in milliseconds is met: ten of them in the engine, solved by a latency book, then timed.

For a run with early exits or a cascade, images of its test split one by one. The book is measured first,
thresholds are solved for each budget on every second test image, and the engine runs others under each.
Not on the validation split: published weights have learnt its images, and are too sure of them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import torch
from measure import interleave, options, publish, table

from sidestep.evaluation.exit_curve import calibrate, survey_exits
from sidestep.evaluation.goals import ExitGoal
from sidestep.runs.export import engine_of_run
from sidestep.runs.latency import measure_book
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run

# Off the budget, as a share of it.
AIM = 0.1
NUM_BUDGETS, NUM_IMAGES = 10, 500


def compare(run: Path, precision: str, source: str | None, seconds: float) -> list[list[str]]:
    """Return a row for every budget: what was asked for, and what images take."""
    book = measure_book(run, "engine", precision=precision, seconds=seconds, source=source)  # type: ignore[arg-type]
    opened = open_run(run, "best")
    test = data_of(opened, "test", source).test
    assert test is not None  # all sources have one
    batches = list(test.eval_batches(batch_size=1000))
    survey = survey_exits(opened.network, batches, opened.cost, book).every_second(0)
    assert survey.ms is not None  # a book was given
    ends = survey.ms.mean(dim=1)
    images = torch.cat([batch.images for batch in batches])[1::2][:NUM_IMAGES].numpy()
    calls, places = {}, torch.linspace(float(ends[0]), float(ends[-1]), NUM_BUDGETS + 2).tolist()[1:-1]
    for budget in places:
        rule = calibrate(survey, ExitGoal(ms=budget)).rule
        engine = engine_of_run(opened, rule, precision)  # type: ignore[arg-type]
        calls[f"{budget:.4f}"] = lambda engine=engine: [
            engine(images[row : row + 1]) for row in range(len(images))
        ]
    ms = interleave(calls, seconds=seconds)
    rows = []
    for name, took in ms.items():
        off = took / len(images) / float(name) - 1
        rows.append(
            [
                run.name,
                book.name,
                name,
                f"{took / len(images):.4f}",
                f"{off:+.1%}",
                "yes" if abs(off) <= AIM else "no",
            ]
        )
    return rows


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with early exits, or cascades")
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")


def main() -> None:
    chosen = options("Budgets in milliseconds against what they take", seconds=10.0, more=arguments)
    rows = [
        row
        for run in chosen.runs
        for precision in ("float32", "bfloat16")
        for row in compare(run, precision, chosen.source, chosen.seconds)
    ]
    heads = ["run", "latency book", "budget, ms", "taken, ms", "off", f"within {AIM:.0%}"]
    publish("Budgets in milliseconds against what images take, engine, batch 1", [table(heads, rows)], chosen)


if __name__ == "__main__":
    main()
