"""Runs timed: a run's network beside its static origin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sidestep.errors import RecipeError
from sidestep.evaluation.bench import BenchResult, bench_network
from sidestep.results.run_result import BENCH
from sidestep.runs.export import engines_of
from sidestep.runs.run_folder import data_of, open_run


def bench(
    run: Path | str,
    *,
    batch_sizes: Sequence[int] = (1, 32, 256),
    seconds: float = 10.0,
    checkpoint: str = "best",
    source: str | None = None,
) -> BenchResult:
    """Return measured times of a run's network, in all its executions, beside its static origin's.

    They are also kept in the run folder, for its results page.

    Args:
        run: a run folder.
        batch_sizes: images per call.
        seconds: time limit of every precision and batch size.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says; real images decide the paths.
    """
    opened = open_run(Path(run), checkpoint)
    data = data_of(opened, "test", source)
    if data.test is None:
        raise RecipeError("bench needs the test split of the run's data, and there is none")
    images = next(iter(data.test.eval_batches(batch_size=max(batch_sizes)))).images
    result = bench_network(
        opened.network,
        input_size=opened.input_size,
        batch_sizes=batch_sizes,
        images=images,
        seconds=seconds,
        rule=opened.exit_rule,
        extra=engines_of(opened, opened.exit_rule),
    )
    (Path(run) / BENCH).write_text(json.dumps(result.as_dict(), indent=1) + "\n")
    return result
