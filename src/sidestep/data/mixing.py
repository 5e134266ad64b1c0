"""What is done to batches in training beyond crops and mirrors: RandAugment, erased rectangles, mixed images.

All draws of an epoch are made at once, by position in its order or by step, from seed and epoch. So parts of
a batch side by side are the whole batch, and a run that goes on sees what it would have seen.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sidestep.data.augment_config import AugmentConfig
from sidestep.data.image_set import epoch_generator
from sidestep.errors import RecipeError
from sidestep.types import Batch

_OPERATIONS, _ERASED, _MIXED = 2, 3, 4
_RATIO = (0.3, 1 / 0.3)  # height over width of what is erased, timm's
# torchvision draws from torch's one generator.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What an epoch's batches go through.

    Attributes:
        config: settings.
        seeds: (N,) of RandAugment, by position in the epoch.
        erased: (N, 5) uniform numbers by position: whether, area, ratio, top, left.
        mixed: (S, 4) by step: share of the first image, whether it is a rectangle of the second that takes
            the rest, and the middle of that rectangle in [0, 1).
    """

    config: AugmentConfig
    seeds: np.ndarray
    erased: Tensor
    mixed: Tensor

    def on_pixels(self, images: Tensor, rows: slice) -> Tensor:
        """Return (B, C, H, W) uint8 images of some positions behind RandAugment."""
        if not self.config.rand_augment:
            return images
        from torchvision.transforms.v2 import RandAugment

        change = RandAugment(num_ops=self.config.rand_augment, magnitude=self.config.magnitude)
        changed = []
        with _one_at_a_time, torch.random.fork_rng([]):
            for image, seed in zip(images, self.seeds[rows].tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                changed.append(change(image))
        return torch.stack(changed).contiguous(memory_format=torch.channels_last)

    def on_batch(self, batch: Batch, rows: slice, step: int) -> Batch:
        """Return a batch of some positions with rectangles erased and images mixed.

        Args:
            batch: normalised images.
            rows: their positions in the epoch.
            step: of the epoch.
        """
        if self.config.erase:
            erased = self.erased[rows].to(batch.images.device)
            batch = replace(batch, images=erase(batch.images, erased, self.config))
        if not self.config.mixes:
            return batch
        return mix(batch, self.mixed[step].to(batch.images.device))


def draw_augmentation(
    config: AugmentConfig, *, positions: int, steps: int, seed: int, epoch: int
) -> Augmentation:
    """Return the augmentation of an epoch, which follows from seed and epoch alone."""
    seeds = epoch_generator(seed, epoch, _OPERATIONS).integers(0, 2**63 - 1, positions)
    erased = epoch_generator(seed, epoch, _ERASED).random((positions, 5), dtype=np.float32)
    return Augmentation(
        config=config,
        seeds=seeds,
        erased=torch.from_numpy(erased),
        mixed=_draw_mixed(config, steps, epoch_generator(seed, epoch, _MIXED)),
    )


def _draw_mixed(config: AugmentConfig, steps: int, generator: np.random.Generator) -> Tensor:
    by_cut = generator.random(steps) < (0.5 if config.mixup else 1.0)
    by_cut &= config.cutmix > 0
    alphas = np.where(by_cut, config.cutmix or 1.0, config.mixup or 1.0)
    shares = generator.beta(alphas, alphas)
    shares[generator.random(steps) >= config.mix_rate] = 1.0
    middles = generator.random((steps, 2))
    return torch.from_numpy(np.column_stack([shares, by_cut, middles])).float()


def erase(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Return (B, C, H, W) normalised images, of some of which a rectangle is 0, the mean colour.

    Area and ratio of the sides are drawn as in timm's RandomErasing; a side that is longer than the image's
    is cut to it, where timm draws anew.

    Args:
        images: normalised.
        draws: (B, 5) numbers in [0, 1): whether, area, ratio, top, left.
        config: settings.
    """
    height, width = images.shape[-2:]
    whether, area, ratio, top, left = draws.unbind(1)
    low, high = config.erase_area
    pixels = (low + (high - low) * area) * height * width
    log_low, log_high = (float(np.log(value)) for value in _RATIO)
    tall = (log_low + (log_high - log_low) * ratio).exp()
    rows, columns = (pixels * tall).sqrt().round(), (pixels / tall).sqrt().round()
    inside = _between(top, rows.clamp(1, height), height).unsqueeze(2)
    inside = inside & _between(left, columns.clamp(1, width), width).unsqueeze(1)
    inside &= (whether < config.erase).view(-1, 1, 1)
    return images.masked_fill(inside.unsqueeze(1), 0.0)


def _between(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return (B, side) whether a place lies in a stretch that begins at a share of what is left free."""
    first = (start * (side - length + 1)).floor().unsqueeze(1)
    places = torch.arange(side, device=start.device)
    return (places >= first) & (places < first + length.unsqueeze(1))


def mix(batch: Batch, draws: Tensor) -> Batch:
    """Return a batch in which every image has a share of its neighbour, and the neighbour one of it.

    Neighbours are the images of rows 2k and 2k + 1, which an epoch's order brings together by chance; so
    processes that share a batch need nothing of each other.

    Args:
        batch: an even number of normalised images.
        draws: (4,) share of an image itself, whether a rectangle of the neighbour takes the rest, and the
            middle of that rectangle, in [0, 1).

    Raises:
        RecipeError: for an odd number of images.
    """
    images = batch.images
    count, _, height, width = images.shape
    check_pairs(count)
    neighbours = torch.arange(count, device=images.device) ^ 1
    share, by_cut, middle_y, middle_x = draws.unbind()
    side = (1 - share).sqrt()
    inside = _around(middle_y, side, height).unsqueeze(1) & _around(middle_x, side, width)
    # A rectangle over the edge is smaller: its share is counted, as CutMix does.
    covered = inside.float().mean()
    own = torch.where(by_cut > 0, 1 - inside.float(), share)
    share = torch.where(by_cut > 0, 1 - covered, share)
    statistics = batch.statistics
    return replace(
        batch,
        images=torch.lerp(images[neighbours], images, own.expand(height, width)),
        statistics=None if statistics is None else torch.lerp(statistics[neighbours], statistics, share),
        partners=batch.labels[neighbours],
        share=share.expand(count),
    )


def check_pairs(count: int) -> None:
    """Refuse a number of images of which not all have a neighbour to be mixed with.

    Raises:
        RecipeError: for an odd number.
    """
    if count % 2:
        raise RecipeError(
            "batch_size must be a multiple of two for every process where images are mixed, got "
            f"{count} images in a process; change it, or drop augment.mixup and augment.cutmix"
        )


def _around(middle: Tensor, share: Tensor, side: int) -> Tensor:
    """Return (side,) whether a place lies in a stretch of a share of the side around a middle."""
    half, centre = (share * side).floor() // 2, (middle * side).floor()
    places = torch.arange(side, device=middle.device)
    return (places >= centre - half) & (places < centre + half)
