from __future__ import annotations

import pickle
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.data import DataConfig, ImageSet, MemorySet, StreamSet
from sidestep.data import load as load_module
from sidestep.data.decode import Decoder, choose_framing
from sidestep.data.load import open_split
from sidestep.errors import DataError, RecipeError
from tests.data.loading import PLAIN, counts, labels, load, pixels, raw, sets

# ---- digits


def test_digits_are_grey_images_of_ten_classes() -> None:
    data = load("digits")
    assert counts(data) == [1350, 150, 297]
    assert (data.num_classes, data.input_size) == (10, (32, 32))
    assert data.class_names == tuple("0123456789")
    seen = pixels(data.test)
    assert seen.shape == (297, 3, 32, 32)
    assert torch.equal(seen[:, 0], seen[:, 1]) and torch.equal(seen[:, 0], seen[:, 2])
    assert float(seen.min()) == 0.0 and float(seen.max()) == 1.0


def test_image_size_is_the_size_of_what_the_network_sees() -> None:
    from sklearn.datasets import load_digits

    data = load("digits", image_size=8, splits=("test",))
    assert data.input_size == (8, 8)
    expected = torch.from_numpy(np.round(load_digits().images[1500:] * 255 / 16)) / 255
    torch.testing.assert_close(pixels(data.test)[:, 0].double(), expected, rtol=0, atol=1e-6)
    assert load("digits", image_size=16, splits=("test",)).input_size == (16, 16)


# ---- held-out images


def test_held_out_images_follow_from_the_seed_and_share_none_with_training() -> None:
    def key(images: ImageSet | None) -> set[bytes]:
        return {image.numpy().tobytes() for image in pixels(images)}

    one, same = (load("digits", image_size=8, splits=("train", "val")) for _ in range(2))
    other = load("digits", image_size=8, split_seed=1, splits=("train", "val"))
    assert key(one.val) == key(same.val) != key(other.val)
    assert not key(one.val) & key(one.train)
    assert key(one.val) | key(one.train) == key(other.val) | key(other.train)


def test_val_fraction_is_the_share_that_is_held_out() -> None:
    data = load("digits", val_fraction=0.2, splits=("train", "val"))
    assert (len(data.train or []), len(data.val or [])) == (1200, 300)
    data = load("digits", val_fraction=0.0)
    assert (len(data.train or []), data.val) == (1500, None)


def test_the_last_resort_is_no_validation() -> None:
    with pytest.raises(
        DataError, match=r"'digits' must have a validation split where val_fraction is 0, got none"
    ):
        load("digits", val_fraction=0.0, splits=("val",))


def test_limit_keeps_so_many_training_images_and_leaves_the_others_alone() -> None:
    data, full = load("digits", limit=100), load("digits")
    assert counts(data) == [100, 150, 297]
    assert torch.equal(pixels(data.val), pixels(full.val))
    with pytest.raises(
        DataError, match="limit must be at most 1350, the training images there are, got 1351"
    ):
        load("digits", limit=1351)


def test_limit_draws_from_all_classes(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=20)
    one, other = (load(root, limit=12, split_seed=seed, splits=("train",)) for seed in (0, 1))
    assert set(labels(one.train)) == {0, 1}
    assert not torch.equal(pixels(one.train), pixels(other.train))


def test_held_out_images_come_from_the_training_split_alone(make_folder: Callable[..., Path]) -> None:
    root = make_folder(("train", "validation", "test"), count=10)
    assert counts(load(root)) == [18, 2, 20]
    assert counts(load(root, val_fraction=0.0)) == [20, 20, 20]
    with pytest.raises(DataError, match=r"val_fraction 0.01 must leave images .* got 0 and 20"):
        load(root, val_fraction=0.01)
    with pytest.raises(DataError, match=r"val_fraction 0.99 must leave images .* got 20 and 0"):
        load(root, val_fraction=0.99)


def test_validation_holds_the_images_as_they_are(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=10)
    data = load(root, val_fraction=0.5)
    files = [raw(Image.open(path)) for path in root.glob("train/*/*.png")]
    seen = [*pixels(data.val), *pixels(data.train)]
    assert len(seen) == len(files) == 20
    for image in seen:
        assert sum(torch.allclose(image, file) for file in files) == 1


# ---- storage and sizes


def test_images_that_vary_in_size_need_an_image_size(make_folder: Callable[..., Path]) -> None:
    root = make_folder(sizes=((12, 20), (18, 14)))
    sentence = (
        r"image_size must be set where images vary in size: image '.*1.png' is 18x14, others 12x20; for"
    )
    with pytest.raises(DataError, match=sentence):
        load(root)


def test_an_image_that_only_decoding_finds_to_vary_is_named(
    make_folder: Callable[..., Path], picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(count=5)
    picture(0, (13, 12)).save(root / "test" / "cat" / "3.png")
    monkeypatch.setattr("sidestep.data.decode._PROBES", 2)
    for storage in ("memory", "stream"):
        with pytest.raises(DataError, match=r"image_size must be set .*3.png' is 13x12, others 12x12"):
            pixels(load(root, splits=("test",), storage=storage).test)


def test_splits_that_differ_in_size_need_an_image_size(
    make_folder: Callable[..., Path], picture: Any
) -> None:
    root = make_folder(count=5)
    for path in root.glob("test/*/*.png"):
        picture(0, (9, 9)).save(path)
    with pytest.raises(
        DataError, match=r"image_size must be set where splits differ in size: .* 9x9, .* 12x12"
    ):
        load(root)
    assert load(root, image_size=10).input_size == (10, 10)


def test_storage_auto_is_memory_for_one_size_that_fits(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(count=5)
    assert all(isinstance(images, MemorySet) for images in sets(load(root)))
    assert all(isinstance(images, StreamSet) for images in sets(load(root, storage="stream")))
    monkeypatch.setattr(load_module, "_MEMORY_LIMIT", 10 * 12 * 12 * 3 - 1)
    assert all(isinstance(images, StreamSet) for images in sets(load(root)))
    assert all(isinstance(images, MemorySet) for images in sets(load(root, storage="memory")))


def test_storage_auto_is_stream_for_photographs(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=5, sizes=((12, 20), (18, 14)))
    assert all(isinstance(images, StreamSet) for images in sets(load(root, image_size=8)))
    in_memory = load(root, image_size=8, storage="memory")
    assert isinstance(in_memory.test, MemorySet)
    assert torch.equal(pixels(in_memory.test), pixels(load(root, image_size=8).test))


def test_native_size_need_not_be_square(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=5, sizes=((10, 14),))
    for storage in ("memory", "stream"):
        data = load(root, storage=storage)
        assert data.input_size == (10, 14)
        assert data.train is not None
        assert next(data.train.train_batches(epoch=0, batch_size=2, seed=0)).images.shape == (2, 3, 10, 14)


# ---- the rest


def test_splits_that_are_not_asked_for_are_not_decoded(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = Decoder.__getitem__

    def recording(self: Decoder, request: Any) -> Any:
        decoded.extend([self.split.name] * len(request.indices))
        return original(self, request)

    monkeypatch.setattr(Decoder, "__getitem__", recording)
    root = make_folder(count=10)
    data = load(root, splits=("test",))
    assert (data.train, data.val) == (None, None)
    assert decoded == [f"folder {str(root / 'test')!r}"] * 20
    decoded.clear()
    data = load(root, splits=("val",))
    assert (data.train, data.test) == (None, None)
    assert decoded == [f"folder {str(root / 'train')!r}"] * 2


def test_unknown_splits_are_named() -> None:
    with pytest.raises(RecipeError, match=r"splits must be some of train, val, test, got \['valid'\]"):
        load("digits", splits=("valid",))
    with pytest.raises(RecipeError, match=r"splits must be some of train, val, test, got \[\]"):
        load("digits", splits=())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"source 'digits' needs the package scikit-learn: .*; pip install"):
        load("digits")


def test_worker_processes_decode_into_memory_too(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=5)
    assert torch.equal(pixels(load(root, workers=2).train), pixels(load(root).train))


def test_arrays_need_no_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: BaseProcess) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(BaseProcess, "start", refuse)
    assert len(load("digits", workers=2).train) == 1350


def test_what_goes_to_worker_processes_can_be_pickled(make_folder: Callable[..., Path]) -> None:
    config = DataConfig(source=str(make_folder()), **PLAIN)
    split = open_split(config, "train")
    assert split is not None
    copy = pickle.loads(pickle.dumps(Decoder(split, choose_framing(split, config), flip=True)))
    assert torch.equal(copy.split.labels, split.labels)


def test_importing_is_light() -> None:
    import subprocess
    import sys

    heavy = "{'timm', 'torchvision', 'datasets', 'sklearn'}"
    code = f"import sys, sidestep.data; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
