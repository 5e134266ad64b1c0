"""The mapping H of RDI-Net (section 3.3): statistics by which images count as similar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sidestep.errors import RecipeError

Statistics = Callable[[Tensor], Tensor]
"""Any mapping of (B, C, H, W) uint8 images to (B, S) float32 statistics, image by image."""

Channels = Literal["rgb", "joint", "green"]
Norm = Literal["sum", "minmax"]
BINS = (32, 64, 200, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramConfig:
    """Settings of the colour histogram; the paper says no more than "histogram statistics".

    Args:
        bins: number of equal intervals of [0, 1] that a pixel value, byte / 255, falls into.
        channels: "rgb" makes one histogram per channel and lays them side by side (S = C * bins), "joint" one
            of the values of all channels, "green" one of the green channel (both S = bins).
        norm: "sum" divides each histogram by its sum, "minmax" maps its smallest count to 0 and its largest
            to 1. The released code has unused experiments with joint, 200 bins, sum and with green,
            256 bins, minmax.
    """

    bins: int = 64
    channels: Channels = "rgb"
    norm: Norm = "sum"

    def __post_init__(self) -> None:
        if self.bins not in BINS:
            raise RecipeError(f"bins must be one of {', '.join(map(str, BINS))}, got {self.bins}")
        if self.channels not in get_args(Channels):
            raise RecipeError(
                f"channels must be one of {', '.join(get_args(Channels))}, got {self.channels!r}"
            )
        if self.norm not in get_args(Norm):
            raise RecipeError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")


def color_histogram(images: Tensor, config: HistogramConfig | None = None) -> Tensor:
    """Return the (B, S) float32 colour histogram of every image.

    A byte k falls into bin floor(bins * k / 255), and 255 into the last one. A histogram whose counts are
    all equal is all 0 under "minmax".

    >>> black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    >>> color_histogram(black)[0, :3], color_histogram(black).shape
    (tensor([1., 0., 0.]), torch.Size([1, 192]))

    Args:
        images: (B, C, H, W) uint8, raw pixels.
        config: settings.

    Raises:
        RecipeError: for the green of grey images.
    """
    config = config or HistogramConfig()
    if config.channels == "green" and images.shape[1] != 3:
        raise RecipeError("channels must be rgb or joint for grey images, which have no green, got 'green'")
    counts = _count_bytes(images[:, 1:2] if config.channels == "green" else images)
    if config.channels == "joint":
        counts = counts.sum(dim=1, keepdim=True)
    histograms = counts.float() @ _byte_to_bin(config.bins, images.device)
    if config.norm == "sum":
        histograms = histograms / histograms.sum(dim=2, keepdim=True)
    else:
        histograms = histograms - histograms.amin(dim=2, keepdim=True)
        histograms = histograms / histograms.amax(dim=2, keepdim=True).clamp_min(1)
    return histograms.flatten(1)


def _count_bytes(images: Tensor) -> Tensor:
    """Return (B, C, 256): how often each byte occurs in each channel of each image."""
    batch, channels = images.shape[:2]
    first = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * 256
    cells = images.flatten(2) + first
    return torch.bincount(cells.flatten(), minlength=batch * channels * 256).view(batch, channels, 256)


def _byte_to_bin(bins: int, device: torch.device) -> Tensor:
    """Return (256, bins): one-hot rows; in integers, since 51 / 255 * 200 need not be 40 in floats."""
    bin_of_byte = (torch.arange(256, device=device) * bins // 255).clamp_max(bins - 1)
    return torch.nn.functional.one_hot(bin_of_byte, bins).float()
