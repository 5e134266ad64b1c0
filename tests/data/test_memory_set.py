from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidestep.data import DataConfig, MemorySet, Shard, color_histogram
from sidestep.data.augment import Normalize, crop_and_flip, draw_epoch, standardize
from sidestep.data.image_set import epoch_order
from sidestep.errors import DataError, RecipeError
from sidestep.types import Batch

PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_set(count: int = 23, *, statistics: Any = None, **changes: Any) -> MemorySet:
    """Return `count` random 6x6 images; the label of an image is its index."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return MemorySet(images, torch.arange(count), DataConfig(**changes), statistics=statistics)


def side_by_side(shards: Iterable[Iterable[Batch]]) -> list[Tensor]:
    return [torch.cat([batch.images for batch in step]) for step in zip(*shards, strict=True)]


def test_a_step_is_order_then_crop_then_normalisation() -> None:
    images = make_set(crop_padding=2)
    batches = list(images.train_batches(epoch=3, batch_size=8, seed=7))
    order = torch.from_numpy(epoch_order(23, seed=7, epoch=3))
    draws = draw_epoch(23, seed=7, epoch=3, padding=2, flip=True, device=torch.device("cpu"))
    assert len(batches) == images.num_steps(8) == 2
    for step, batch in enumerate(batches):
        rows = slice(8 * step, 8 * step + 8)
        pixels = crop_and_flip(images.images[order[rows]], draws.rows(rows), 2)
        assert torch.equal(batch.images, Normalize(images.config.mean, images.config.std, "cpu")(pixels))
        assert torch.equal(batch.labels, order[rows])
        assert batch.statistics is None


@settings(max_examples=20, deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 3, 6]),
    start_step=st.integers(0, 3),
    seed=st.integers(0, 50),
    epoch=st.integers(0, 50),
)
def test_shards_and_resumed_runs_see_what_one_uninterrupted_process_sees(
    world_size: int, start_step: int, seed: int, epoch: int
) -> None:
    images = make_set(statistics=color_histogram)
    whole = list(images.train_batches(epoch=epoch, batch_size=6, seed=seed))[start_step:]
    shards = [
        list(
            images.train_batches(
                epoch=epoch, start_step=start_step, batch_size=6, shard=Shard(rank, world_size), seed=seed
            )
        )
        for rank in range(world_size)
    ]
    assert all(len(shard) == len(whole) for shard in shards)
    for step, batch in enumerate(whole):
        parts = [shard[step] for shard in shards]
        for field in ("images", "labels", "statistics"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


def test_an_epoch_shows_every_image_once_and_another_epoch_in_another_order() -> None:
    images = make_set(24)
    first, second = (
        torch.cat([batch.labels for batch in images.train_batches(epoch=epoch, batch_size=8, seed=0)])
        for epoch in (0, 1)
    )
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(24))
    assert not torch.equal(first, second)


def test_evaluation_is_in_order_complete_and_not_augmented() -> None:
    images = make_set(statistics=color_histogram, **PLAIN)
    batches = list(images.eval_batches(batch_size=10))
    assert [len(batch.labels) for batch in batches] == [10, 10, 3]
    seen = torch.cat([batch.images for batch in batches])
    torch.testing.assert_close(seen, images.images / 255, check_stride=False)
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(23))
    statistics = torch.cat([batch.statistics for batch in batches if batch.statistics is not None])
    assert torch.equal(statistics, color_histogram(images.images))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_over_shards_sees_each_image_once(world_size: int) -> None:
    images = make_set()
    shards = [images.eval_batches(batch_size=4, shard=Shard(rank, world_size)) for rank in range(world_size)]
    labels = [int(label) for shard in shards for batch in shard for label in batch.labels]
    assert sorted(labels) == list(range(23))


def test_two_shards_side_by_side_are_the_global_evaluation_batches() -> None:
    images = make_set(24)
    parts = side_by_side(images.eval_batches(batch_size=8, shard=Shard(rank, 2)) for rank in range(2))
    whole = [batch.images for batch in images.eval_batches(batch_size=8)]
    assert all(torch.equal(part, batch) for part, batch in zip(parts, whole, strict=True))


def test_statistics_are_those_of_the_image_before_augmentation() -> None:
    images = make_set(statistics=color_histogram)
    batch = next(images.train_batches(epoch=0, batch_size=8, seed=0))
    assert batch.statistics is not None
    assert torch.equal(batch.statistics, color_histogram(images.images[batch.labels]))


def test_any_mapping_can_be_the_statistics() -> None:
    images = make_set(600, statistics=lambda pixels: pixels.float().mean(dim=(2, 3)))
    batch = next(images.eval_batches(batch_size=600))
    torch.testing.assert_close(batch.statistics, images.images.float().mean(dim=(2, 3)))


def test_without_padding_and_flip_training_sees_the_images_themselves() -> None:
    images = make_set(crop_padding=0, flip=False, **PLAIN)
    batch = next(images.train_batches(epoch=0, batch_size=23, seed=0))
    torch.testing.assert_close(batch.images, images.images[batch.labels] / 255, check_stride=False)


def test_flip_mirrors_and_padding_blackens() -> None:
    def first(**changes: Any) -> Batch:
        return next(make_set(**changes, **PLAIN).train_batches(epoch=0, batch_size=23, seed=0))

    plain, flipped, padded = first(crop_padding=0, flip=False), first(crop_padding=0), first(flip=False)
    mirrored = (flipped.images == plain.images.flip(3)).flatten(1).all(dim=1)
    unchanged = (flipped.images == plain.images).flatten(1).all(dim=1)
    assert mirrored.any() and unchanged.any() and (mirrored ^ unchanged).all()
    assert (padded.images == 0).float().mean() > 0.2 > (plain.images == 0).float().mean()


def test_mean_and_std_normalise() -> None:
    pixels = next(make_set(**PLAIN).eval_batches(batch_size=23)).images
    mean, std = (0.5, 0.25, 0.0), (0.5, 1.0, 2.0)
    batch = next(make_set(mean=mean, std=std).eval_batches(batch_size=23))
    for channel in range(3):
        expected = (pixels[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(batch.images[:, channel], expected)


def test_every_image_is_standardized_by_itself_behind_its_crop() -> None:
    images = make_set(crop_padding=2, per_image_standardization=True)
    (batch, *_) = images.train_batches(epoch=3, batch_size=8, seed=7)
    order = torch.from_numpy(epoch_order(23, seed=7, epoch=3))[:8]
    draws = draw_epoch(23, seed=7, epoch=3, padding=2, flip=True, device=torch.device("cpu")).rows(slice(8))
    cropped = crop_and_flip(images.images[order], draws, 2)
    assert torch.equal(batch.images, standardize(cropped))
    assert torch.equal(next(images.eval_batches(batch_size=5)).images, standardize(images.images[:5]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_standardized_shards_lie_side_by_side(world_size: int) -> None:
    images = make_set(per_image_standardization=True)
    (whole, *_) = images.train_batches(epoch=0, batch_size=6, seed=0)
    shards = [
        next(images.train_batches(epoch=0, batch_size=6, seed=0, shard=Shard(rank, world_size))).images
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(shards), whole.images)


def test_batches_are_channels_last_and_do_not_share_memory_with_the_set() -> None:
    images = make_set()
    before = images.images.clone()
    for batch in (*images.train_batches(epoch=0, batch_size=8, seed=0), *images.eval_batches(batch_size=8)):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        batch.images.zero_()
    assert torch.equal(images.images, before)


def test_errors_come_with_the_call_and_not_with_the_first_batch() -> None:
    images = make_set(23)
    with pytest.raises(RecipeError, match="batch_size must be in 1 to 23, the number of images, got 24"):
        images.train_batches(epoch=0, batch_size=24, seed=0)
    with pytest.raises(RecipeError, match="batch_size must be in 1 to 23"):
        images.num_steps(24)
    with pytest.raises(RecipeError, match="start_step must be in 0 to 2"):
        images.train_batches(epoch=0, batch_size=8, seed=0, start_step=3)
    with pytest.raises(RecipeError, match="multiple of the number of processes"):
        images.train_batches(epoch=0, batch_size=8, seed=0, shard=Shard(0, 3))


def test_wrong_tensors_are_named() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    with pytest.raises(DataError, match=r"images must be \(N, 3, H, W\) uint8, got .* torch.float32"):
        MemorySet(pixels, torch.zeros(2), DataConfig())
    with pytest.raises(DataError, match=r"images must be \(N, 3, H, W\) uint8, got \(2, 1, 4, 4\)"):
        MemorySet(pixels[:, :1].byte(), torch.zeros(2), DataConfig())
    with pytest.raises(DataError, match=r"labels must be one per image, \(2,\), got \(3,\)"):
        MemorySet(pixels.byte(), torch.zeros(3), DataConfig())


def test_views_of_an_image_are_neighbours_that_differ() -> None:
    images = make_set(12, crop_padding=2, views=3, **PLAIN)
    batches = list(images.train_batches(epoch=0, batch_size=6, seed=0))
    assert len(batches) == images.num_steps(6) == 6
    labels = torch.cat([batch.labels for batch in batches]).view(12, 3)
    assert bool((labels == labels[:, :1]).all())
    assert sorted(labels[:, 0].tolist()) == list(range(12))
    assert {batch.views for batch in batches} == {3}
    views = torch.cat([batch.images for batch in batches]).reshape(12, 3, -1)
    assert (views[:, 0] != views[:, 1]).any(dim=1).float().mean() > 0.8
    assert next(images.eval_batches(batch_size=6)).views == 1


def test_views_are_not_parted_over_processes() -> None:
    with pytest.raises(RecipeError, match="multiple of views times processes, 6, got 4"):
        make_set(12, views=3).train_batches(epoch=0, batch_size=4, seed=0, shard=Shard(0, 2))
