from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sidestep.data import DataConfig, ImageSet, Shard, StreamSet, color_histogram, load_data
from sidestep.data.augment import Normalize, standardize
from sidestep.data.augment_config import AugmentConfig
from sidestep.data.folders import FolderImages
from sidestep.data.image_set import epoch_order
from sidestep.errors import DataError, RecipeError
from sidestep.types import Batch

PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> Callable[..., ImageSet]:
    """Return a function that opens 20 training images of two shapes as a stream."""
    root = make_folder(count=10, sizes=((12, 20), (18, 14)))

    def open_stream(*, statistics: Any = None, split: Any = "train", **changes: Any) -> ImageSet:
        config = DataConfig(source=str(root), image_size=8, **{"val_fraction": 0.0, "workers": 0, **changes})
        opened = getattr(load_data(config, statistics=statistics, splits=(split,)), split)
        assert isinstance(opened, StreamSet)
        return opened

    return open_stream


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[tuple[int, int]]]:
    """Return a function that lists (process, index) of the images that were opened."""
    record = tmp_path / "opened"
    record.touch()
    original = FolderImages.open

    @contextmanager
    def recording(self: FolderImages, index: int) -> Iterator[Image.Image]:
        with record.open("a") as file:
            file.write(f"{os.getpid()} {index}\n")
        with original(self, index) as image:
            yield image

    monkeypatch.setattr(FolderImages, "open", recording)

    def read() -> list[tuple[int, int]]:
        rows = [line.split() for line in record.read_text().splitlines()]
        record.write_text("")
        return [(int(process), int(index)) for process, index in rows]

    return read


AUGMENT = {"rand_augment": 1, "erase": 0.5, "mixup": 0.2, "cutmix": 1.0}


def collect(batches: Iterator[Batch]) -> list[tuple[Tensor, Tensor, Tensor]]:
    found = []
    for batch in batches:
        assert batch.statistics is not None
        found.append((batch.images, batch.labels, batch.statistics))
    return found


@pytest.mark.parametrize(
    ("world_size", "start_step", "augment"),
    [(1, 0, {}), (1, 2, {}), (2, 0, {}), (3, 1, {}), (1, 1, AUGMENT), (3, 0, AUGMENT)],
)
def test_shards_and_resumed_runs_see_what_one_uninterrupted_process_sees(
    photos: Callable[..., ImageSet], world_size: int, start_step: int, augment: dict[str, Any]
) -> None:
    images = photos(statistics=color_histogram, augment=AugmentConfig(**augment))
    whole = collect(images.train_batches(epoch=1, batch_size=6, seed=5))[start_step:]
    shards = [
        collect(
            images.train_batches(
                epoch=1, start_step=start_step, batch_size=6, shard=Shard(rank, world_size), seed=5
            )
        )
        for rank in range(world_size)
    ]
    assert len(whole) == 3 - start_step
    for step, batch in enumerate(whole):
        for field in range(3):
            assert torch.equal(torch.cat([shard[step][field] for shard in shards]), batch[field])


def test_epochs_and_seeds_differ(photos: Callable[..., ImageSet]) -> None:
    images = photos()

    def first(epoch: int, seed: int) -> Tensor:
        return next(images.train_batches(epoch=epoch, batch_size=20, seed=seed)).images

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_an_image_is_cropped_anew_in_every_epoch(photos: Callable[..., ImageSet]) -> None:
    images = photos(flip=False)

    def crops(epoch: int, seed: int) -> Tensor:
        """Return the crop of each image, in the order of the set."""
        crops = next(images.train_batches(epoch=epoch, batch_size=20, seed=seed)).images
        return crops[torch.from_numpy(epoch_order(20, seed=seed, epoch=epoch)).argsort()]

    first = crops(0, 0)
    for other in (crops(1, 0), crops(0, 1), first.roll(1, 0)):
        assert not (first == other).flatten(1).all(dim=1).any()


def test_worker_processes_decode_the_same_and_as_many_as_asked_for(
    photos: Callable[..., ImageSet], opened: Callable[[], list[tuple[int, int]]]
) -> None:
    seen = []
    for workers in (0, 2):
        images = photos(workers=workers, statistics=color_histogram)
        opened()
        seen.append(collect(images.train_batches(epoch=0, batch_size=5, seed=0)))
        processes = {process for process, _ in opened()}
        assert len(processes) == max(workers, 1)
        assert (os.getpid() in processes) == (workers == 0)
    for alone, helped in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_resumed_run_does_not_decode_what_it_skips(
    photos: Callable[..., ImageSet], opened: Callable[[], list[tuple[int, int]]]
) -> None:
    images = photos()
    opened()
    assert len(list(images.train_batches(epoch=0, batch_size=5, seed=0, start_step=3))) == 1
    assert len(opened()) == 5


def test_statistics_are_those_of_the_crop(photos: Callable[..., ImageSet]) -> None:
    images = photos(statistics=lambda pixels: pixels.float().mean(dim=(2, 3)), **PLAIN)
    for batch in (
        next(images.train_batches(epoch=0, batch_size=20, seed=0)),
        next(images.eval_batches(batch_size=20)),
    ):
        assert batch.statistics is not None
        torch.testing.assert_close(batch.images.mean(dim=(2, 3)) * 255, batch.statistics)


def test_every_image_is_standardized_by_itself(photos: Callable[..., ImageSet]) -> None:
    plain, own = photos(**PLAIN), photos(per_image_standardization=True)
    for seen, expected in (
        (
            own.train_batches(epoch=0, batch_size=20, seed=0),
            plain.train_batches(epoch=0, batch_size=20, seed=0),
        ),
        (own.eval_batches(batch_size=20), plain.eval_batches(batch_size=20)),
    ):
        pixels = (next(expected).images * 255).round().byte()
        assert torch.equal(next(seen).images, standardize(pixels))


def test_global_random_state_is_neither_read_nor_moved(photos: Callable[..., ImageSet]) -> None:
    images = photos()
    first = next(images.train_batches(epoch=0, batch_size=20, seed=0)).images
    torch.manual_seed(123)
    random.seed(123)
    state, python_state = torch.get_rng_state(), random.getstate()
    assert torch.equal(next(images.train_batches(epoch=0, batch_size=20, seed=0)).images, first)
    list(images.eval_batches(batch_size=7))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


def test_photographs_are_evaluated_at_256_to_224_like_timm(photos: Callable[..., ImageSet]) -> None:
    from timm.data.transforms_factory import create_transform

    images = photos(split="test")
    transform = create_transform(8, crop_pct=0.875, interpolation="bilinear", normalize=False)
    paths = sorted(Path(images.config.source).glob("test/*/*.png"))  # type: ignore[attr-defined]
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    seen = torch.cat([batch.images for batch in images.eval_batches(batch_size=6)])
    assert torch.equal(seen, Normalize(DataConfig().mean, DataConfig().std, "cpu")(pixels))
    assert [len(batch.labels) for batch in images.eval_batches(batch_size=6)] == [6, 6, 6, 2]
    assert (
        torch.cat([batch.labels for batch in images.eval_batches(batch_size=6)]).tolist()
        == [0] * 10 + [1] * 10
    )


def test_a_photograph_that_has_the_size_is_framed_like_the_others(
    photos: Callable[..., ImageSet], picture: Callable[..., Image.Image]
) -> None:
    from timm.data.transforms_factory import create_transform

    images = photos(split="test")
    small = picture(3, (8, 8))
    small.save(Path(images.config.source) / "test" / "cat" / "0.png")  # type: ignore[attr-defined]
    expected = create_transform(8, crop_pct=0.875, interpolation="bilinear", normalize=False)(small)
    seen = next(images.eval_batches(batch_size=1)).images
    assert torch.equal(seen, Normalize(DataConfig().mean, DataConfig().std, "cpu")(expected.unsqueeze(0)))


def test_evaluation_over_shards_sees_each_image_once(photos: Callable[..., ImageSet]) -> None:
    images = photos()
    whole = torch.cat([batch.images for batch in images.eval_batches(batch_size=6)])
    shards = [list(images.eval_batches(batch_size=6, shard=Shard(rank, 4))) for rank in range(4)]
    assert sum(len(batch.labels) for shard in shards for batch in shard) == 20
    first = torch.cat([shard[0].images for shard in shards])
    assert torch.equal(first, whole[:6])


def test_flip_mirrors_half_of_the_crops(photos: Callable[..., ImageSet]) -> None:
    def epoch(flip: bool) -> Tensor:
        return next(photos(flip=flip).train_batches(epoch=0, batch_size=20, seed=0)).images

    plain, flipped = epoch(False), epoch(True)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(dim=1)
    unchanged = (flipped == plain).flatten(1).all(dim=1)
    assert mirrored.any() and unchanged.any() and (mirrored ^ unchanged).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_image_is_named_and_not_replaced(
    make_folder: Callable[..., Path], workers: int
) -> None:
    root = make_folder(count=10)
    broken = root / "train" / "dog" / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = DataConfig(
        source=str(root), image_size=8, storage="stream", workers=workers, val_fraction=0.0, split_seed=0
    )
    # the sizes of so small a set are all looked at, for which 60 bytes are enough
    images = load_data(config, splits=("train",)).train
    assert images is not None
    with pytest.raises(
        DataError, match=r"image '.*7.png' must be an image that Pillow can decode, got .*"
    ) as caught:
        list(images.train_batches(epoch=0, batch_size=10, seed=0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_stream_agree_on_evaluation(make_folder: Callable[..., Path], workers: int) -> None:
    root = make_folder(count=9)
    seen = []
    for storage in ("memory", "stream"):
        config = DataConfig(source=str(root), storage=storage, workers=workers, image_size=10)
        data = load_data(config, statistics=color_histogram)
        for images in (data.train, data.val, data.test):
            assert images is not None
            seen.append(collect(images.eval_batches(batch_size=4)))
    for in_memory, streamed in zip(seen[:3], seen[3:], strict=True):
        for one, other in zip(in_memory, streamed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_crop_padding_is_refused_where_it_has_no_effect(make_folder: Callable[..., Path]) -> None:
    root = make_folder(sizes=((12, 20), (18, 14)))
    config = DataConfig(source=str(root), image_size=8, crop_padding=2, workers=0)
    with pytest.raises(RecipeError, match="crop_padding has no effect on a streamed set"):
        load_data(config)


def test_views_of_a_streamed_image_are_neighbours_with_crops_of_their_own(
    photos: Callable[..., ImageSet],
) -> None:
    images = photos(flip=False, views=2)
    (batch,) = images.train_batches(epoch=0, batch_size=40, seed=0)
    assert batch.views == 2
    assert torch.equal(batch.labels[::2], batch.labels[1::2])
    assert not (batch.images[::2] == batch.images[1::2]).flatten(1).all(dim=1).any()
    order = torch.from_numpy(epoch_order(20, seed=0, epoch=0))
    assert torch.equal(
        torch.from_numpy(epoch_order(20, seed=0, epoch=0, views=2)), order.repeat_interleave(2)
    )
