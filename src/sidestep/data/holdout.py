"""Which images of the training split are held out, and which of the others are used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sidestep.data.data_config import DataConfig
from sidestep.data.image_set import Indices
from sidestep.errors import DataError

Counts = npt.NDArray[np.int64]


def hold_out(labels: Indices, config: DataConfig) -> tuple[Indices, Indices]:
    """Return the images of the training split to validate and to train on, each in ascending order.

    Args:
        labels: (N,) class indices of the training split.
        config: `val_fraction`, `limit`, `split_seed` and `holdout` are what it follows from.

    Raises:
        DataError: if one of the two would have no image, or `limit` is more than there are.
    """
    num_images = len(labels)
    order = np.random.default_rng(config.split_seed).permutation(num_images)
    num_val = round(config.val_fraction * num_images)
    counts = np.bincount(labels)
    if config.holdout == "stratified" and num_val < num_images:
        num_val = min(num_val, int(np.maximum(counts - 1, 0).sum()))
    num_train = num_images - num_val
    if num_train < 1 or (config.val_fraction > 0 and num_val < 1):
        raise DataError(
            f"val_fraction {config.val_fraction} must leave images to both parts of the training split, got "
            f"{num_val} and {num_train}; change it, or set it to 0"
        )
    if config.limit is not None and config.limit > num_train:
        raise DataError(
            f"limit must be at most {num_train}, the training images there are, got {config.limit}"
        )
    if config.holdout == "random":
        return np.sort(order[:num_val]), np.sort(order[num_val:][: config.limit])
    val = _first_of_each(order, labels, shares(num_val, counts, most=np.maximum(counts - 1, 0)))
    rest = order[~np.isin(order, val)]
    if config.limit is None:
        return np.sort(val), np.sort(rest)
    left = np.bincount(labels[rest], minlength=len(counts))
    # One of every class, as long as the limit is enough for that.
    least = np.minimum(left, 1) if config.limit >= (left > 0).sum() else np.zeros_like(left)
    return np.sort(val), np.sort(_first_of_each(rest, labels, shares(config.limit, left, least=least)))


def shares(total: int, counts: Counts, *, least: Counts | None = None, most: Counts | None = None) -> Counts:
    """Return how many images of every class make up a total, as near to the classes' shares as can be.

    >>> shares(10, np.array([50, 49, 1]), least=np.array([0, 0, 1]))
    array([5, 4, 1])

    Args:
        total: number of images, at most the sum of `most`.
        counts: images of every class.
        least: of every class, 0 by default.
        most: of every class, all by default.
    """
    low = np.zeros_like(counts) if least is None else least
    high = counts if most is None else most
    exact = total * counts / counts.sum()
    given: Counts = np.clip(np.floor(exact).astype(np.int64), low, high)
    while missing := total - int(given.sum()):
        step = 1 if missing > 0 else -1
        free = np.flatnonzero(given < high if step > 0 else given > low)
        # Whose share is missed by most comes first; of equal ones the first class.
        chosen = free[np.argsort(-step * (exact - given)[free], kind="stable")[: abs(missing)]]
        given[chosen] += step
    return given


def _first_of_each(order: Indices, labels: Indices, counts: Counts) -> Indices:
    """Return the first images of every class in an order, so many as `counts` says."""
    grouped = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[grouped], np.arange(len(counts)))
    place = np.arange(len(grouped)) - starts[labels[grouped]]
    return grouped[place < counts[labels[grouped]]]
