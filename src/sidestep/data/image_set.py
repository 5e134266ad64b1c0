"""What every image set offers, and the order in which its images come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.progress import through
from sidestep.types import Batch

Indices = npt.NDArray[np.int64]

_EVAL_PIXELS = 1 << 22
_ORDER = 0  # sets the draws of the order apart from other draws of the same seed and epoch


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of every global batch that one process sees.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise RecipeError(f"rank must be in 0 to {self.world_size - 1} (world_size - 1), got {self.rank}")

    def rows(self, start: int, stop: int) -> slice:
        """Return this process's contiguous part of the rows start to stop - 1 of all processes."""
        count = stop - start
        first, last = count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size
        return slice(start + first, start + last)


class ImageSet(Protocol):
    """Images and labels that come in batches: `MemorySet` or `StreamSet`."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    @property
    def labels(self) -> Tensor:
        """Return the (N,) class indices."""
        ...

    def num_steps(self, batch_size: int, among: Indices | None = None) -> int:
        """Return the number of whole global batches in an epoch, of all images or of those `among` some."""
        ...

    def train_batches(
        self,
        *,
        epoch: int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        shard: Shard | None = None,
        among: Indices | None = None,
    ) -> Iterator[Batch]:
        """Return this shard's augmented batches of an epoch from `start_step` on.

        What a step holds follows from (seed, epoch, step, batch_size, among) alone: shards laid side by side
        equal the global batch, and a start at any step equals an epoch that was not interrupted. The last
        incomplete batch is left out.

        Args:
            epoch: index of the epoch, at least 0.
            batch_size: images of a step over all processes; a multiple of their number.
            seed: of order and augmentation, at least 0.
            start_step: steps of the epoch that were done before.
            shard: this process among all; None is the only one.
            among: the images of which the epoch is made; None is all.
        """
        ...

    def eval_batches(self, *, batch_size: int, shard: Shard | None = None) -> Iterator[Batch]:
        """Return all images in order, not augmented; the last batch may be smaller.

        Args:
            batch_size: images of a batch over all processes.
            shard: this process among all; each image is seen by exactly one.
        """
        ...


def epoch_order(
    num_images: int, *, seed: int, epoch: int, views: int = 1, among: Indices | None = None
) -> Indices:
    """Return the (N * views,) image at each position of an epoch.

    A permutation that follows from seed and epoch, with every image as often in a row as it has views.

    Args:
        num_images: N of the set.
        seed: of the order.
        epoch: index of the epoch.
        views: of every image.
        among: the images of which the epoch is made, N then; None is all.
    """
    chosen = num_images if among is None else among
    return epoch_generator(seed, epoch, _ORDER).permutation(chosen).repeat(views)


def epoch_generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """Return the source of an epoch's draws for one purpose.

    Raises:
        RecipeError: if seed or epoch is negative.
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise RecipeError(f"{name} must be at least 0, got {value}")
    return np.random.default_rng((seed, epoch, purpose))


def eval_batch_size(size: tuple[int, int]) -> int:
    """Return how many images of (H, W) are evaluated at once: an even number, 1,000 small ones at most.

    What a network computes of photographs is so large that more of them take no less time each.

    >>> eval_batch_size((32, 32)), eval_batch_size((224, 224)), eval_batch_size((1000, 4000))
    (1000, 80, 16)
    """
    return max(16, min(1000, _EVAL_PIXELS // (size[0] * size[1]) // 16 * 16))


def shown_batches(
    images: ImageSet, input_size: tuple[int, int], what: str = "running the network"
) -> Iterator[Batch]:
    """Return all images in the batches in which networks are evaluated, and show how far they are read.

    Args:
        images: of a split.
        input_size: height and width of them.
        what: is done with them.
    """
    batches = images.eval_batches(batch_size=eval_batch_size(input_size))
    return through(batches, what, len(images), lambda batch: len(batch.labels))


def count_steps(num_images: int, batch_size: int, views: int = 1) -> int:
    """Return the number of whole batches in an epoch.

    Raises:
        RecipeError: if there is none.
    """
    positions = num_images * views
    if not 1 <= batch_size <= positions:
        raise RecipeError(f"batch_size must be in 1 to {positions}, the number of images, got {batch_size}")
    return positions // batch_size


def train_rows(
    num_images: int, batch_size: int, start_step: int, shard: Shard, views: int = 1
) -> list[slice]:
    """Return the positions of an epoch that a shard sees, one slice for each step from `start_step` on.

    Raises:
        RecipeError: if the shards cannot have equal parts, views of an image would be parted, or the epoch
            has fewer steps.
    """
    steps = count_steps(num_images, batch_size, views)
    if batch_size % shard.world_size:
        raise RecipeError(
            f"batch_size must be a multiple of the number of processes, {shard.world_size}, got {batch_size}"
        )
    if batch_size % (shard.world_size * views):
        raise RecipeError(
            f"batch_size must be a multiple of views times processes, {views * shard.world_size}, got "
            f"{batch_size}; views of an image stay together"
        )
    if not 0 <= start_step <= steps:
        raise RecipeError(f"start_step must be in 0 to {steps}, the steps of an epoch, got {start_step}")
    return [shard.rows(step * batch_size, (step + 1) * batch_size) for step in range(start_step, steps)]


def eval_rows(num_images: int, batch_size: int, shard: Shard) -> list[slice]:
    """Return the images that a shard sees, one slice for each batch; slices without an image are left out.

    Raises:
        RecipeError: if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(0, num_images, batch_size)
    rows = [shard.rows(start, min(start + batch_size, num_images)) for start in starts]
    return [row for row in rows if row.start < row.stop]
