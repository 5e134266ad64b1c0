"""What is done to decoded images, a batch at a time and on their device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sidestep.data.data_config import DataConfig, Fill, PerChannel
from sidestep.data.image_set import epoch_generator
from sidestep.errors import RecipeError

_AUGMENTATION = 1
_MIRRORED = 5


class Draws(NamedTuple):
    """Random crops and flips of one epoch, by position in its order.

    Attributes:
        top: (N,) row of the padded image at which the crop starts, in 0 to 2 * padding.
        left: (N,) column likewise.
        flip: (N,) whether the crop is mirrored.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def rows(self, rows: slice) -> Draws:
        """Return the draws of some positions."""
        return Draws(self.top[rows], self.left[rows], self.flip[rows])


def draw_epoch(
    num_images: int, *, seed: int, epoch: int, padding: int, flip: bool, device: torch.device
) -> Draws:
    """Return the draws of an epoch, which follow from seed and epoch alone.

    One draw for each position rather than for each step: on a GPU it costs one transfer per epoch.
    """
    generator = epoch_generator(seed, epoch, _AUGMENTATION)
    offsets = torch.from_numpy(generator.integers(0, 2 * padding + 1, size=(2, num_images)))
    flips = torch.from_numpy(generator.random(num_images) < (0.5 if flip else 0.0))
    return Draws(offsets[0].to(device), offsets[1].to(device), flips.to(device))


def alternating(order: Tensor, num_images: int, *, seed: int, epoch: int, views: int = 1) -> Tensor:
    """Return (N,) flips by position: in even epochs those of half of the images, in odd ones all others.

    Two epochs show every image both ways (Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU");
    flips by chance show half of them twice alike. Views of an image take turns as well.

    Args:
        order: (N,) image at each position of the epoch.
        num_images: of the set.
        seed: of the images that are mirrored first.
        epoch: index of the epoch.
        views: number of views of every image, which are neighbours.
    """
    first = torch.from_numpy(epoch_generator(seed, 0, _MIRRORED).random(num_images) < 0.5).to(order.device)
    view = torch.arange(len(order), device=order.device) % views
    flips: Tensor = first[order] ^ ((view + epoch) % 2 == 1)
    return flips


def crop_and_flip(images: Tensor, draws: Draws, padding: int, fill: Fill = "black") -> Tensor:
    """Return a crop of every padded image, in the size it had, mirrored where `flip` says so.

    Args:
        images: (B, C, H, W) uint8 in channels_last memory, and so is what is returned.
        draws: B crops and flips.
        padding: pixels on each side.
        fill: what they are.

    Raises:
        RecipeError: where an image is too small to be mirrored at its edges.
    """
    pixels = images.permute(0, 2, 3, 1)
    if padding:
        pixels = _crop(pixels, draws, padding, fill)
    mirrored = torch.where(draws.flip.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    return mirrored.permute(0, 3, 1, 2)


def _crop(pixels: Tensor, draws: Draws, padding: int, fill: Fill) -> Tensor:
    batch, height, width, channels = pixels.shape
    if fill == "black":
        padded = pad(pixels, (0, 0, padding, padding, padding, padding)).flatten(2)
    else:
        rows, columns = (_mirrored(side, padding, pixels.device) for side in (height, width))
        padded = pixels.index_select(1, rows).index_select(2, columns).flatten(2)
    # All crops as a view without copies, (B, top, left, H, W * C), of which one per image is gathered.
    # Rows of whole pixels are long contiguous runs, which are faster to copy than single pixels.
    crops = padded.unfold(1, height, 1).unfold(2, width * channels, channels)
    chosen = crops[torch.arange(batch, device=pixels.device), draws.top, draws.left]
    return chosen.view(batch, height, width, channels)


def _mirrored(side: int, padding: int, device: torch.device) -> Tensor:
    """Return which of a side's pixels lie where it is padded with what mirrors at its edges show."""
    if padding >= side:
        raise RecipeError(
            f"crop_padding must be below the side of an image that is mirrored, {side}, got {padding}; "
            "lower it, or set crop_fill: black"
        )
    places = torch.arange(-padding, side + padding, device=device).abs()
    return torch.where(places >= side, 2 * side - 2 - places, places)


def make_normalization(config: DataConfig, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Return the mapping of (B, C, H, W) uint8 images on a device to what a network sees."""
    if config.per_image_standardization:
        return standardize
    return Normalize(config.mean, config.std, device)


def standardize(images: Tensor) -> Tensor:
    """Return (B, C, H, W) uint8 as float32 in channels_last memory, every image by its own statistics.

    As TensorFlow's per_image_standardization of pixels from 0 to 255; for n = CHW numbers x of an image::

        (x - mean(x)) / max(std(x), 1 / sqrt(n))

    Sums of whole numbers are exact in float64, so an image is the same in every batch and on every device.
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch, -1).float()
    count = rows.shape[1]
    mean = rows.sum(1, keepdim=True, dtype=torch.float64) / count
    variance = rows.square().sum(1, keepdim=True, dtype=torch.float64) / count - mean.square()
    std = variance.clamp_min(1 / count).sqrt()
    standardized = rows.sub_(mean.float()).div_(std.float())
    return standardized.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Normalize:
    """Maps (B, C, H, W) uint8 to float32 in channels_last memory: (images / 255 - mean) / std.

    The constants are put on the device once: a copy for each batch would make the host wait for a GPU.

    Args:
        mean: of each channel of pixels in [0, 1].
        std: of each channel.
        device: of the images.
    """

    def __init__(self, mean: PerChannel, std: PerChannel, device: torch.device | str) -> None:
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)

    def __call__(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        # Rows of W * C numbers and not C channels as the last dimension, so that copies are vectorised.
        rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        normalized = rows.float().mul_(self._scale.repeat(width)).add_(self._shift.repeat(width))
        return normalized.view(batch, height, width, channels).permute(0, 3, 1, 2)
