from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidestep.data import HistogramConfig, color_histogram
from sidestep.data.histogram import BINS, Channels, Norm
from sidestep.errors import RecipeError

EVERY_CONFIG = [
    HistogramConfig(bins=bins, channels=channels, norm=norm)
    for bins, channels, norm in product(BINS, Channels.__args__, Norm.__args__)  # type: ignore[attr-defined]
]


def literal_histogram(image: Tensor, config: HistogramConfig) -> list[float]:
    """Return the histogram of one (3, H, W) image, one pixel after the other and in exact fractions."""
    planes = {"rgb": [[0], [1], [2]], "joint": [[0, 1, 2]], "green": [[1]]}[config.channels]
    result: list[float] = []
    for plane in planes:
        counts = [0] * config.bins
        for channel in plane:
            for byte in image[channel].flatten().tolist():
                value = Fraction(byte, 255)
                counts[min(int(value * config.bins), config.bins - 1)] += 1
        low, high = (min(counts), max(counts)) if config.norm == "minmax" else (0, sum(counts))
        result += [(count - low) / max(high - low, 1) for count in counts]
    return result


def random_images(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 9, 7), generator=generator, dtype=torch.uint8)


def test_four_red_pixels_by_hand() -> None:
    # 64 bins: 0 falls into bin 0, 3 into 0 (0.75), 4 into 1 (1.004), 255 into 63
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[0, 3], [4, 255]])
    red, green, blue = color_histogram(image).view(3, 64)
    assert red[0] == 0.5 and red[1] == 0.25 and red[63] == 0.25
    assert green[0] == 1.0 and blue[0] == 1.0


@pytest.mark.parametrize("config", EVERY_CONFIG, ids=lambda c: f"{c.bins}-{c.channels}-{c.norm}")
def test_every_setting_is_the_literal_loop(config: HistogramConfig) -> None:
    images = random_images(3)
    histograms = color_histogram(images, config)
    assert histograms.shape == (3, config.bins * (3 if config.channels == "rgb" else 1))
    assert histograms.dtype == torch.float32
    expected = torch.tensor([literal_histogram(image, config) for image in images])
    torch.testing.assert_close(histograms, expected)


def test_a_byte_on_the_edge_of_two_bins_belongs_to_the_upper_one() -> None:
    image = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)  # 51 / 255 * 200 is 40 exactly
    histogram = color_histogram(image, HistogramConfig(bins=200, channels="green"))
    assert int(histogram.argmax()) == 40


def test_bins_are_those_of_numpy() -> None:
    image = random_images(1, seed=3)
    counts, _ = np.histogram(image[0, 0].numpy() / 255.0, bins=64, range=(0.0, 1.0))
    torch.testing.assert_close(
        color_histogram(image)[0, :64].double(), torch.from_numpy(counts / counts.sum())
    )


def test_minmax_of_equal_counts_is_zero() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    histogram = color_histogram(ramp, HistogramConfig(bins=256, norm="minmax"))
    assert not histogram.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), config=st.sampled_from(EVERY_CONFIG))
def test_properties(seed: int, config: HistogramConfig) -> None:
    images = random_images(4, seed)
    histograms = color_histogram(images, config)
    groups = histograms.view(4, -1, config.bins)
    if config.norm == "sum":
        torch.testing.assert_close(groups.sum(dim=2), torch.ones(groups.shape[:2]))
    else:
        assert (groups.amin(dim=2) == 0).all() and (groups.amax(dim=2) == 1).all()
    assert torch.equal(
        color_histogram(images.flip(3), config), histograms
    )  # where pixels lie does not matter
    assert torch.equal(color_histogram(images[[2, 0, 3, 1]], config), histograms[[2, 0, 3, 1]])
    assert torch.equal(color_histogram(images[1:2], config), histograms[1:2])


def test_memory_layout_does_not_matter() -> None:
    images = random_images(2)
    assert torch.equal(
        color_histogram(images.contiguous(memory_format=torch.channels_last)), color_histogram(images)
    )


def test_wrong_settings_are_named() -> None:
    with pytest.raises(RecipeError, match="bins must be one of 32, 64, 200, 256, got 100"):
        HistogramConfig(bins=100)
    with pytest.raises(RecipeError, match="channels must be one of rgb, joint, green, got 'hsv'"):
        HistogramConfig(channels="hsv")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="norm must be one of sum, minmax, got 'l2'"):
        HistogramConfig(norm="l2")  # type: ignore[arg-type]
