"""Prices in milliseconds, from the times of whole paths through a network.

Parts are not timed one by one: what a call costs beside them, and what parts cost one behind the other, would
be missing. Random paths are timed instead, and prices fitted to them by least squares, none below 0. Single
images come in streams that differ in how many go far: what an image takes depends on what the one before it
has left in the caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.evaluation.bench import SINGLE_IMAGES, batches_of, interleave
from sidestep.evaluation.given_paths import PathRunner, Paths, draw_paths
from sidestep.types import CostModel

_FEWEST_PATHS, _PATHS_PER_PRICE = 32, 3
# Every so manieth path is not fitted to, so that it can tell how good the prices are.
_HELD_OUT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrices:
    """Prices, and how well they predict.

    Attributes:
        prices: in milliseconds per image.
        error: mean difference between predicted and measured time of held-out paths, as a share of the time.
    """

    prices: CostModel
    error: float


def fit_prices(
    runner: PathRunner, images: Tensor, cost: CostModel, *, chooses: bool, batch_size: int, seconds: float
) -> FittedPrices:
    """Return what every part of a network takes per image, with so many images in a call.

    Args:
        runner: how images are run.
        images: (N, 3, H, W) normalised images.
        cost: price list of the network in MACs.
        chooses: whether the network chooses among options of units.
        batch_size: images per call.
        seconds: time limit behind the warm-up; every path is timed three times in any case.

    Raises:
        RecipeError: for seconds that are no time limit.
    """
    if not 0 <= seconds < math.inf:
        raise RecipeError(f"seconds must be at least 0 and finite, got {seconds}; 10 are usual")
    num_exits = 1 if cost.exits is None else len(cost.exits)
    num_prices = num_exits + (cost.options[:, 1:].numel() if chooses else 0)
    count = max(_FEWEST_PATHS, _PATHS_PER_PRICE * num_prices)
    calls = max(1, SINGLE_IMAGES // batch_size)
    paths = draw_paths(cost, calls * batch_size, count, chooses=chooses)
    design = np.stack([_features(each, cost, chooses) for each in paths])
    times = _times(runner, images, paths, batch_size, seconds)
    # The extremes come first; from among what is behind them some are kept to judge the prices by.
    held_out = np.zeros(count, dtype=bool)
    held_out[2 * num_exits :: _HELD_OUT] = True
    trial = _fitted(design[~held_out], times[~held_out])
    error = float(np.mean(np.abs(design[held_out] @ trial - times[held_out]) / times[held_out]))
    return FittedPrices(prices=_prices(_fitted(design, times), cost, chooses), error=error)


def _features(paths: Paths, cost: CostModel, chooses: bool) -> np.ndarray:
    """Return how often an image of a stream pays every price: the base, ways to later exits, options."""
    num_exits = 1 if cost.exits is None else len(cost.exits)
    reached = (paths.exits.unsqueeze(1) >= torch.arange(num_exits)).double().mean(dim=0)
    if not chooses:
        return reached.numpy()
    before = torch.tensor([len(cost.options)]) if cost.exit_units is None else cost.exit_units
    asked = torch.arange(len(cost.options)) < before[paths.exits].unsqueeze(1)
    options = torch.nn.functional.one_hot(paths.options, cost.options.shape[1])[..., 1:]
    taken = (options * asked.unsqueeze(2)).double().mean(dim=0)
    return torch.cat([reached, taken.flatten()]).numpy()


def _times(
    runner: PathRunner, images: Tensor, paths: Sequence[Paths], batch_size: int, seconds: float
) -> np.ndarray:
    """Return the median milliseconds per image of every stream of paths."""
    inputs = [runner.convert(batch) for batch in batches_of(images, batch_size)]
    parts = [[each.part(index, batch_size) for index in range(len(inputs))] for each in paths]
    calls = {str(index): partial(_run, runner, inputs, part) for index, part in enumerate(parts)}
    with torch.inference_mode():
        # Without pauses: behind one a stream, which is as long as a turn, would be all waking up.
        ms = interleave(calls, seconds=seconds, pauses=False)
    return np.array(list(ms.values())) / (len(inputs) * batch_size)


def _run(runner: PathRunner, inputs: Sequence[Any], calls: Sequence[Paths]) -> None:
    for images, paths in zip(inputs, calls, strict=True):
        runner.run(images, paths)


def _fitted(design: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the prices, none below 0, with the smallest squares of relative errors."""
    return np.asarray(nnls(design / times[:, None], np.ones(len(times)))[0])


def _prices(found: np.ndarray, cost: CostModel, chooses: bool) -> CostModel:
    """Return the price list of what was fitted, in the order of `_features`."""
    num_units, num_options = cost.options.shape
    num_exits = 1 if cost.exits is None else len(cost.exits)
    options = torch.zeros(num_units, num_options)
    if chooses:
        options[:, 1:] = torch.from_numpy(found[num_exits:]).view(num_units, num_options - 1).float()
    later = torch.from_numpy(found[1:num_exits])
    static = None
    if cost.static is not None and cost.exit_units is not None:
        # The last member of a cascade alone: its way, and its units at their dearest.
        static = float(later[-1] + options[int(cost.exit_units[-2]) :, -1].sum())
    return CostModel(
        fixed=float(found[0]),
        options=options,
        routers=torch.zeros(num_units),
        exits=None if cost.exits is None else torch.cat([later.new_zeros(1), later.cumsum(0)]).float(),
        exit_units=cost.exit_units,
        static=static,
        unit="ms",
    )
