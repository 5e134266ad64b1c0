"""Image sets that fit into memory, augmented on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from sidestep.data.augment import Draws, alternating, crop_and_flip, draw_epoch, make_normalization
from sidestep.data.data_config import DataConfig
from sidestep.data.histogram import Statistics
from sidestep.data.image_set import Indices, Shard, count_steps, epoch_order, eval_rows, train_rows
from sidestep.data.mixing import draw_augmentation
from sidestep.errors import DataError
from sidestep.types import Batch

_CHUNK = 256  # images whose statistics are computed at once


class MemorySet:
    """Decoded images on a device; see `ImageSet` for what the methods return.

    Training crops with zero padding and mirrors (He et al. 2016, section 4.2); padding is black, before
    normalisation, or where `crop_fill` says so the image mirrored at its edges. Statistics are computed once,
    of the images as they were before augmentation: padding would put up to 23 % of black pixels into a
    histogram of a 32x32 image.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) class indices.
        config: normalisation and augmentation.
        statistics: mapping of images to statistics, or None.
        device: where the images are kept and the batches come up.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: DataConfig,
        *,
        statistics: Statistics | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != config.channels or not shape[0]:
            raise DataError(f"images must be (N, {config.channels}, H, W) uint8, got {shape} {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise DataError(f"labels must be one per image, ({len(images)},), got {tuple(labels.shape)}")
        self.config = config
        self.images = images.to(device).contiguous(memory_format=torch.channels_last)
        self.labels = labels.to(device, torch.int64)
        self._normalize = make_normalization(config, device)
        self.statistics = None if statistics is None else _in_chunks(statistics, self.images)

    def __len__(self) -> int:
        return len(self.images)

    def num_steps(self, batch_size: int, among: Indices | None = None) -> int:
        return count_steps(len(self if among is None else among), batch_size, self.config.views)

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
        config, device = self.config, self.images.device
        padding, views = config.crop_padding, config.views
        num_images = len(self if among is None else among)
        rows = train_rows(num_images, batch_size, start_step, shard or Shard(), views)
        positions = epoch_order(len(self), seed=seed, epoch=epoch, views=views, among=among)
        order = torch.from_numpy(positions).to(device)
        draws = draw_epoch(
            len(order), seed=seed, epoch=epoch, padding=padding, flip=bool(config.flip), device=device
        )
        if config.flip == "alternating":
            flips = alternating(order, len(self), seed=seed, epoch=epoch, views=views)
            draws = Draws(draws.top, draws.left, flips)
        steps = start_step + len(rows)
        more = draw_augmentation(config.augment, positions=len(order), steps=steps, seed=seed, epoch=epoch)

        def batch(row: slice, step: int) -> Batch:
            indices = order[row]
            cropped = crop_and_flip(self._select(indices), draws.rows(row), padding, config.crop_fill)
            made = replace(self._batch(more.on_pixels(cropped, row), indices), views=views)
            return more.on_batch(made, row, step)

        return map(batch, rows, count(start_step))

    def eval_batches(self, *, batch_size: int, shard: Shard | None = None) -> Iterator[Batch]:
        rows = eval_rows(len(self), batch_size, shard or Shard())
        return (self._batch(self.images[row], row) for row in rows)

    def _select(self, indices: Tensor) -> Tensor:
        # index_select on whole pixel rows copies each image at once, and images[indices] pixel by pixel.
        return self.images.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)

    def _batch(self, images: Tensor, which: Tensor | slice) -> Batch:
        return Batch(
            images=self._normalize(images),
            labels=self.labels[which],
            statistics=None if self.statistics is None else self.statistics[which],
        )


def _in_chunks(statistics: Statistics, images: Tensor) -> Tensor:
    starts = range(0, len(images), _CHUNK)
    return torch.cat([statistics(images[start : start + _CHUNK]) for start in starts])
