"""Image sets that are decoded anew in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from torch import Tensor

from sidestep.data.augment import make_normalization
from sidestep.data.data_config import DataConfig, check_stream
from sidestep.data.decode import Decoder, Framing, Request, decode_batches
from sidestep.data.histogram import Statistics
from sidestep.data.image_set import Indices, Shard, count_steps, epoch_order, eval_rows, train_rows
from sidestep.data.mixing import draw_augmentation
from sidestep.data.split import Split
from sidestep.types import Batch


class StreamSet:
    """Some images of a split, decoded by worker processes; see `ImageSet` for what the methods return.

    Training crops at random sizes and mirrors, evaluation takes the centre; both with the transforms of timm,
    the ImageNet recipe of RDI-Net. The crop of an image follows from (seed, epoch, image) alone. Statistics
    are computed of the crop, as the network sees it but not normalised.

    Args:
        split: what is decoded.
        indices: (N,) images of the split that belong to the set.
        config: normalisation, flip and workers.
        framing: the size.
        statistics: mapping of images to statistics, called in the workers, or None.
        device: where batches come up.
    """

    def __init__(
        self,
        split: Split,
        indices: Indices,
        config: DataConfig,
        *,
        framing: Framing,
        statistics: Statistics | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_stream(config)
        self.config = config
        self.indices = indices
        self.device = torch.device(device)
        self._normalize = make_normalization(config, self.device)
        self._decoder = Decoder(split, framing, flip=bool(config.flip), statistics=statistics)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        return self._decoder.split.labels[torch.from_numpy(self.indices)]

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
        views = self.config.views
        num_images = len(self if among is None else among)
        rows = train_rows(num_images, batch_size, start_step, shard or Shard(), views)
        order = epoch_order(len(self), seed=seed, epoch=epoch, views=views, among=among)
        steps = start_step + len(rows)
        more = draw_augmentation(
            self.config.augment, positions=len(order), steps=steps, seed=seed, epoch=epoch
        )
        requests = [Request(self.indices[order[row]], (seed, epoch), views) for row in rows]
        changes = (partial(more.on_pixels, rows=row) for row in rows)
        batches = self._batches(requests, changes)
        return (
            more.on_batch(replace(batch, views=views), row, step)
            for batch, row, step in zip(batches, rows, count(start_step), strict=False)
        )

    def eval_batches(self, *, batch_size: int, shard: Shard | None = None) -> Iterator[Batch]:
        rows = eval_rows(len(self), batch_size, shard or Shard())
        return self._batches([Request(self.indices[row]) for row in rows])

    def _batches(
        self, requests: Sequence[Request], changes: Iterable[Callable[[Tensor], Tensor]] = ()
    ) -> Iterator[Batch]:
        """Return the batches of requests.

        Args:
            requests: what to decode.
            changes: what is done to the pixels of each, or nothing.
        """
        every = iter(changes)
        on_gpu = self.device.type == "cuda"
        workers = self.config.workers
        for decoded in decode_batches(self._decoder, requests, workers=workers, pin_memory=on_gpu):
            statistics, change = decoded.statistics, next(every, None)
            images = decoded.images.to(self.device, non_blocking=on_gpu)
            yield Batch(
                images=self._normalize(images if change is None else change(images)),
                labels=decoded.labels.to(self.device, non_blocking=on_gpu),
                statistics=None if statistics is None else statistics.to(self.device, non_blocking=on_gpu),
            )
