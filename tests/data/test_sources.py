"""Folders, and downloads of torchvision."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.errors import DataError
from tests.data.loading import counts, labels, load, pixels, raw

# ---- folders


def test_folder_images_and_labels_by_hand(make_folder: Callable[..., Path]) -> None:
    root = make_folder(classes=("class10", "class9"), count=3)
    data = load(root, val_fraction=0.0)
    assert data.class_names == ("class9", "class10")  # natural order
    assert labels(data.test) == [0, 0, 0, 1, 1, 1]
    paths = [root / "test" / name / f"{n}.png" for name in data.class_names for n in range(3)]
    expected = torch.stack([raw(Image.open(path)) for path in paths])
    torch.testing.assert_close(pixels(data.test), expected, check_stride=False)


def test_a_path_with_capital_letters_is_found(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    shutil.move(make_folder(), tmp_path / "Photos")
    assert counts(load(tmp_path / "Photos", val_fraction=0.0)) == [8, 0, 8]


def test_a_test_folder_without_some_class_keeps_the_numbers_of_training(
    make_folder: Callable[..., Path],
) -> None:
    root = make_folder(classes=("bird", "cat", "dog"), count=2)
    shutil.rmtree(root / "test" / "cat")
    data = load(root, splits=("test",))
    assert labels(data.test) == [0, 0, 2, 2]
    assert data.num_classes == 3


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_the_test_split_has_one_of_three_names(make_folder: Callable[..., Path], name: str) -> None:
    data = load(make_folder(("train", name), count=5))
    assert counts(data) == [9, 1, 10]


def test_every_ending_that_pillow_reads_counts(make_folder: Callable[..., Path], picture: Any) -> None:
    root = make_folder(count=1)
    for ending in ("webp", "bmp", "JPG", "gif"):
        picture(7).save(root / "test" / "dog" / f"x.{ending}")
    assert labels(load(root, splits=("test",)).test) == [0, 1, 1, 1, 1, 1]


def test_a_grey_image_a_palette_and_an_alpha_channel_become_rgb(
    make_folder: Callable[..., Path], picture: Any
) -> None:
    root = make_folder(count=1)
    grey = picture(5, mode="L")
    grey.save(root / "test" / "cat" / "1.png")
    picture(6).convert("RGBA").save(root / "test" / "cat" / "2.png")
    picture(7).convert("P").save(root / "test" / "cat" / "3.png", transparency=b"\x80\x40")
    seen = pixels(load(root, splits=("test",)).test)
    torch.testing.assert_close(seen[1], raw(grey), check_stride=False)
    torch.testing.assert_close(seen[2], raw(picture(6)), check_stride=False)
    torch.testing.assert_close(seen[3], raw(picture(7).convert("P")), check_stride=False)


def test_an_image_of_sixteen_bits_is_refused_rather_than_clipped(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=1)
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(root / "test" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"1.png' .* got pixels of mode I;16, which have more than 8 bits"):
        load(root, splits=("test",))


def test_what_a_folder_lacks_is_named(make_folder: Callable[..., Path], tmp_path: Path, picture: Any) -> None:
    with pytest.raises(
        DataError,
        match=r"source must be one of digits, .*, got .digit., which .* mean digits",
    ):
        load("digit")
    with pytest.raises(DataError, match=r"must have a split named train, got none"):
        load(tmp_path)
    root = make_folder(("train",))
    with pytest.raises(DataError, match=r"must have a split named one of test, validation, val, got train"):
        load(root)
    (root / "test").mkdir()
    with pytest.raises(DataError, match=r"test' must hold at least one image, in a folder for each"):
        load(root)
    (root / "test" / "bird").mkdir()
    picture(0).save(root / "test" / "bird" / "0.png")
    with pytest.raises(DataError, match=r"a class of the training split, cat, dog, got folder 'bird'"):
        load(root)
    (root / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=r"class folder '.*bird' must hold at least one image, got none"):
        load(root)


def test_labels_are_the_folders_directly_below_a_split(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=2)
    shutil.copytree(root / "train" / "cat", root / "train" / "cat" / "dog" / "deeper")
    data = load(root, val_fraction=0.0)
    assert (data.class_names, labels(data.train)) == (("cat", "dog"), [0, 0, 0, 0, 1, 1])


def test_what_is_hidden_or_left_by_systems_is_passed_over(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=2)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.thumbs", "dog/@eaDir"):
        shutil.copytree(root / "train" / "dog", root / "train" / name, ignore=lambda *_: ["@eaDir"])
    for name in (".DS_Store", "cat/.DS_Store", "cat/._0.png", "labels.csv", "dog/Thumbs.db", "dog/notes"):
        (root / "train" / name).write_bytes(b"no image")
    data = load(root, val_fraction=0.0)
    assert (data.class_names, labels(data.train)) == (("cat", "dog"), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/loop", ".."),
        ("cat/again", "../dog"),
        ("bird", "cat"),
        ("bird", "../../elsewhere"),
        ("bird", "."),
    ],
)
def test_links_to_folders_are_refused(make_folder: Callable[..., Path], link: str, target: str) -> None:
    root = make_folder(count=2)
    shutil.copytree(root / "train" / "cat", root.parent / "elsewhere")
    (root / "train" / link).symlink_to(target)
    with pytest.raises(DataError, match=rf"'.*{link}' must be a folder, got a link to '.*', whose images"):
        load(root)


def test_links_to_files_are_these_files(make_folder: Callable[..., Path], picture: Any) -> None:
    root = make_folder(count=1)
    picture(7).save(root.parent / "stored", "PNG")
    (root / "test" / "dog" / "1.png").symlink_to(root.parent / "stored")
    torch.testing.assert_close(
        pixels(load(root, splits=("test",)).test)[2], raw(picture(7)), check_stride=False
    )
    (root / "test" / "dog" / "2.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"image '.*2.png' must be an image .* No such file"):
        load(root, splits=("test",))


def test_images_outside_of_a_class_are_refused(make_folder: Callable[..., Path], picture: Any) -> None:
    root = make_folder(count=1)
    picture(0).save(root / "train" / "astray.JPG")
    with pytest.raises(DataError, match=r"image '.*astray.JPG' must lie in the folder of its class, "):
        load(root)


def test_classes_whose_names_differ_in_case_are_others(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=1)
    (root / "test" / "cat").rename(root / "test" / "Cat")
    with pytest.raises(DataError, match=r"a class of the training split, cat, dog, got folder 'Cat'"):
        load(root, val_fraction=0.0)


def test_names_with_numbers_sort_by_them_whatever_they_are(make_folder: Callable[..., Path]) -> None:
    names = ["10", "9", "a10", "a9", "x\u00b2", "\u0663", "B"]
    data = load(make_folder(classes=names, count=1), val_fraction=0.0)
    assert data.class_names == ("\u0663", "9", "10", "a9", "a10", "B", "x\u00b2")


def test_names_that_are_no_utf_8_become_some(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=1)
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "caf\udce9")
    data = load(root, val_fraction=0.0)
    assert data.class_names == ("caf\\udce9", "dog")
    assert labels(data.test) == [0, 1]


# ---- torchvision


@pytest.fixture
def torch_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a root with CIFAR-10 in the format that torchvision downloads, of four images."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, count in (("data_batch_1", 3), ("test_batch", 1)):
        data = np.arange(count * 3072, dtype=np.int64).reshape(count, 3072).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(count))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return tmp_path


def test_torch_reads_what_lies_under_root(torch_cifar: Path) -> None:
    data = load("torch/cifar10", root=str(torch_cifar), val_fraction=0.0)
    assert counts(data) == [3, 0, 1]
    assert data.class_names == tuple("abcdefghij")
    assert labels(data.train) == [0, 1, 2]
    expected = torch.arange(3072).remainder(256).view(1, 3, 32, 32) / 255
    torch.testing.assert_close(pixels(data.test), expected, check_stride=False)


def test_torch_without_network_leads_to_a_local_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(self: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", unreachable)
    sentence = (
        r"'torch/cifar100' must lie under root '.*' or be downloadable, got .*Name or service not known"
    )
    with pytest.raises(DataError, match=sentence + r".*; copy it there, or set source: hfds/<local folder>"):
        load("torch/cifar100", root=str(tmp_path))
