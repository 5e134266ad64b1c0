"""Runs timed: a run's network beside its static origin."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.evaluation.bench import SINGLE_IMAGES, BenchResult, bench_network
from sidestep.files import kept, write_file
from sidestep.results.run_result import BENCH
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.at_budget import ExitBudget, settle
from sidestep.runs.export import engines_of, int8_engine
from sidestep.runs.quantised import CALIBRATION_IMAGES, calibration_batches
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import OpenedRun, open_run

_log = logging.getLogger(__name__)

# Of so many the first ones stand for all: a bench of single images takes those.
_IMAGES = 256


def bench(
    run: Path | str,
    *,
    batch_sizes: Sequence[int] = (1, 32, 256),
    seconds: float = 10.0,
    budget: float | None = None,
    checkpoint: str = "best",
    source: str | None = None,
    calibrate: int = CALIBRATION_IMAGES,
) -> BenchResult:
    """Return measured times of a run's network, in all its executions, beside its static origin's.

    They are also kept in the run folder, for its results page. Where that cannot be written they are still
    returned, with an `UnkeptWarning`.

    Args:
        run: a run folder.
        batch_sizes: images per call.
        seconds: time limit of every precision and batch size.
        budget: mean MACs as a fraction of the full network's; None is what `calibrate` has kept, or the
            network as it was trained.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says; real images decide the paths.
        calibrate: number of validation images on which the engine and static runtimes quantise the network to
            INT8; 0 leaves that out, as does a run without a validation split.

    Raises:
        RecipeError: for a run without a test split, or a number below 0.
    """
    if calibrate < 0:
        raise RecipeError(f"calibrate must be at least 0 images, got {calibrate}; 0 leaves INT8 out")
    opened = open_run(run, checkpoint)
    rule = settle(opened, None if budget is None else ExitBudget(fraction=budget), source)
    images = test_images(opened, source, max(batch_sizes), rule)
    extra = engines_of(opened, rule)
    calibration = None
    if calibrate and opened.recipe.data.val_fraction:
        calibration = torch.cat(calibration_batches(opened, calibrate, source))
        extra |= int8_engine(opened, rule, calibration)
    result = bench_network(
        opened.network,
        input_size=opened.input_size,
        batch_sizes=batch_sizes,
        images=images,
        seconds=seconds,
        rule=rule,
        extra=extra,
        calibration=calibration,
    )
    with kept():
        write_file(opened.folder / BENCH, json.dumps(result.as_dict(), indent=1) + "\n", what="bench")
        _log.info("wrote %s", opened.folder / BENCH)
    return result


def test_images(opened: OpenedRun, source: str | None, count: int, rule: ExitRule | None) -> Tensor:
    """Return (N, 3, H, W) images of a run's test split to time it on, `count` or 256 where there are so many.

    Args:
        opened: the run.
        source: where the data lies now, if not where the recipe says.
        count: how many.
        rule: where images leave early exits, or None.

    Raises:
        RecipeError: for a run without a test split.
    """
    _log.info("reading the test split of %s", opened.data_from(source).source)
    data = data_of(opened, "test", source)
    if data.test is None:
        raise RecipeError("bench needs the test split of the run's data, and there is none")
    images = next(iter(data.test.eval_batches(batch_size=max(count, _IMAGES)))).images
    return representative_first(opened, images, rule)


def representative_first(opened: OpenedRun, images: Tensor, rule: ExitRule | None) -> Tensor:
    """Return images in an order in which the first ones cost, on average, what all do.

    Few images by chance would be all cheap ones, where one of ten goes on to a dearer member.
    """
    with torch.inference_mode():
        output = opened.network(images, rule=rule)
        order = opened.cost.per_sample(output.decisions).argsort(stable=True)
    count = min(SINGLE_IMAGES, len(order))
    places = ((torch.arange(count) + 0.5) * len(order) / count).long()
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[places] = True
    return images[torch.cat([order[chosen], order[~chosen].sort().values])]
