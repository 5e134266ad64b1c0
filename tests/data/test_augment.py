from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidestep.data.augment import Draws, Normalize, crop_and_flip, draw_epoch, make_normalization, standardize
from sidestep.data.data_config import DataConfig

CPU = torch.device("cpu")


def literal_crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Return what torchvision's RandomCrop(padding) and hflip make of each image, pixel by pixel."""
    result = torch.zeros_like(images)
    batch, channels, height, width = images.shape
    for b in range(batch):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    source_y = y + int(draws.top[b]) - padding
                    crop_x = width - 1 - x if draws.flip[b] else x
                    source_x = crop_x + int(draws.left[b]) - padding
                    if 0 <= source_y < height and 0 <= source_x < width:
                        result[b, c, y, x] = images[b, c, source_y, source_x]
    return result


def random_images(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch + 10 * height + 100 * width)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def test_a_crop_one_right_and_one_down_of_a_two_by_two_image() -> None:
    images = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(2, 3, 2, 2)
    draws = Draws(torch.tensor([2, 2]), torch.tensor([2, 2]), torch.tensor([False, True]))
    cropped = crop_and_flip(images.contiguous(memory_format=torch.channels_last), draws, 1)
    assert cropped[0, 0].tolist() == [[4, 0], [0, 0]]
    assert cropped[1, 2].tolist() == [[0, 4], [0, 0]]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_crop_and_flip_is_the_literal_loop(
    batch: int, height: int, width: int, padding: int, seed: int
) -> None:
    images = random_images(batch, height, width)
    draws = draw_epoch(batch, seed=seed, epoch=0, padding=padding, flip=True, device=CPU)
    assert torch.equal(crop_and_flip(images, draws, padding), literal_crop_and_flip(images, draws, padding))


def test_the_crop_in_the_middle_is_the_image() -> None:
    images = random_images(5, 8, 8)
    middle = Draws(torch.full((5,), 4), torch.full((5,), 4), torch.zeros(5, dtype=torch.bool))
    assert torch.equal(crop_and_flip(images, middle, 4), images)


def test_normalize_is_the_formula_in_channels_last_memory() -> None:
    images, mean, std = random_images(4, 5, 7), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    normalized = Normalize(mean, std, CPU)(images)
    torch.testing.assert_close(normalized, expected, check_stride=False, rtol=1e-6, atol=1e-6)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert normalized.dtype == torch.float32


def test_normalize_takes_either_memory_layout() -> None:
    images = random_images(2, 4, 4)
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU)
    assert torch.equal(normalize(images), normalize(images.contiguous()))


def test_standardizing_gives_the_numbers_that_tensorflow_documents() -> None:
    """Its example is the 2x2 image with channels 1 to 12; deviation sqrt(143 / 12)."""
    pixels = torch.arange(1, 13, dtype=torch.uint8).view(1, 2, 2, 3).permute(0, 3, 1, 2)
    documented = [-1.593255, -1.3035723, -1.0138896, -0.7242068, -0.4345241, -0.14484136]
    documented += [-value for value in reversed(documented)]
    standardized = standardize(pixels).permute(0, 2, 3, 1).flatten()
    torch.testing.assert_close(standardized, torch.tensor(documented))


@given(batch=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6), low=st.integers(0, 255))
def test_standardizing_is_the_literal_formula_for_every_image_by_itself(
    batch: int, height: int, width: int, low: int
) -> None:
    images = random_images(batch, height, width).clamp_min(low)  # a single value where low is 255
    standardized = standardize(images)
    for b in range(batch):
        values = [float(value) for value in images[b].flatten()]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        expected = (images[b].double() - mean) / max(deviation, 1 / math.sqrt(len(values)))
        torch.testing.assert_close(standardized[b].double(), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(standardize(images[b : b + 1])[0], standardized[b])
    assert standardized.is_contiguous(memory_format=torch.channels_last)
    assert standardized.dtype == torch.float32


def test_a_uniform_image_becomes_zeros_and_a_deviation_is_at_least_one_over_the_root_of_its_size() -> None:
    uniform = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert not standardize(uniform).any()
    # One of 48 numbers is higher by 1: the deviation is sqrt(47) / 48, just below the bound 1 / sqrt(48).
    uniform[0, 0, 0, 0] = 201
    assert standardize(uniform)[0, 0, 0, 0].item() == pytest.approx(47 / 48 * math.sqrt(48), rel=1e-4)


def test_a_config_chooses_between_both() -> None:
    images = random_images(2, 4, 4)
    config = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = Normalize(config.mean, config.std, CPU)(images)
    assert torch.equal(make_normalization(config, CPU)(images), expected)
    per_image = make_normalization(DataConfig(per_image_standardization=True), CPU)
    assert torch.equal(per_image(images), standardize(images))


def test_standardizing_takes_either_memory_layout_and_leaves_its_input() -> None:
    images = random_images(2, 4, 4)
    before = images.clone()
    assert torch.equal(standardize(images), standardize(images.contiguous()))
    assert torch.equal(images, before)


def test_padding_is_black_before_normalisation() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    corner = Draws(torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))
    normalized = Normalize((0.5,) * 3, (0.5,) * 3, CPU)(crop_and_flip(images, corner, 1))
    torch.testing.assert_close(normalized[0, 0], torch.tensor([[-1.0, -1.0], [-1.0, 1.0]]))


def test_draws_are_uniform() -> None:
    draws = draw_epoch(9000, seed=0, epoch=0, padding=4, flip=True, device=CPU)
    for offsets in (draws.top, draws.left):
        counts = offsets.bincount()
        assert len(counts) == 9  # 0 to 2 * padding
        assert counts.min() > 850 and counts.max() < 1150  # 1000 each, standard deviation 30
    assert 4350 < int(draws.flip.sum()) < 4650  # 4500, standard deviation 47
    assert (draws.top != draws.left).any()


def test_draws_follow_from_seed_and_epoch() -> None:
    def top(seed: int, epoch: int) -> list[int]:
        return draw_epoch(64, seed=seed, epoch=epoch, padding=4, flip=True, device=CPU).top.tolist()

    assert top(3, 5) == top(3, 5)
    assert len({tuple(top(s, e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize("padding", [0, 2])
def test_without_flip_nothing_is_mirrored(padding: int) -> None:
    draws = draw_epoch(500, seed=0, epoch=0, padding=padding, flip=False, device=CPU)
    assert not draws.flip.any()
    assert int(draws.top.max()) == int(draws.left.max()) == 2 * padding
