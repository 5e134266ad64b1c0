"""Sets in layouts that Hugging Face datasets reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sidestep.errors import DataError
from tests.data.loading import labels, load, pixels, raw


def test_hub_images_and_labels_by_hand(make_hub: Callable[..., str], picture: Any, tmp_path: Path) -> None:
    images = [picture(n) for n in range(4)]
    source = make_hub({"train": (images, [0, 1, 0, 1]), "test": (images[:3], [1, 0, 1])})
    data = load(source, val_fraction=0.0, root=str(tmp_path / "cache"))
    assert data.class_names == ("cat", "dog")
    assert (labels(data.train), labels(data.test)) == ([0, 1, 0, 1], [1, 0, 1])
    expected = torch.stack([raw(image) for image in images])
    torch.testing.assert_close(pixels(data.train), expected, check_stride=False)
    assert any((tmp_path / "cache").rglob("*.arrow"))  # root is where datasets keeps what it unpacks


def test_a_hub_folder_with_capital_letters_is_found(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    shutil.move(make_hub({"test": ([picture(0)], [1])}).removeprefix("hfds/"), tmp_path / "Hub")
    data = load(f"hfds/{tmp_path / 'Hub'}", root=str(tmp_path / "cache"), splits=("test",))
    assert labels(data.test) == [1]


@pytest.mark.parametrize(
    ("image_key", "label_key"), [("img", "label"), ("image", "labels"), ("img", "fine_label")]
)
def test_columns_have_the_usual_names(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path, image_key: str, label_key: str
) -> None:
    source = make_hub({"validation": ([picture(0)], [1])}, image_key=image_key, label_key=label_key)
    assert labels(load(source, root=str(tmp_path / "cache"), splits=("test",)).test) == [1]


def test_unusual_columns_are_named(make_hub: Callable[..., str], picture: Any, tmp_path: Path) -> None:
    source = make_hub({"train": ([picture(0)], [1])}, image_key="photo")
    with pytest.raises(
        DataError, match=r"must have a column named image or img, got photo, label; rename one"
    ):
        load(source, root=str(tmp_path / "cache"))


def test_classes_without_names_are_counted_in_the_training_split(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    two = [picture(0), picture(1)]
    source = make_hub({"train": (two, [1, 0]), "test": (two, [0, 0])}, classes=None)
    assert load(source, root=str(tmp_path / "cache"), splits=("test",)).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([0, 2], "must be 0 to 1 for its 2 classes, got 0, 2 without 1; number them"),
        ([1, 2], "must be 0 to 1 for its 2 classes, got 1, 2 without 0; number them"),
        (
            [10**12, 10**12 + 1],
            "without 0, 1, 2, 3, 4 and 999999999995 more",
        ),
    ],
)
def test_labels_with_gaps_are_no_classes(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path, found: list[int], said: str
) -> None:
    two = [picture(0), picture(1)]
    source = make_hub({"train": (two, found), "test": (two, found)}, classes=None)
    with pytest.raises(DataError, match=rf"labels of split 'train' of .*, which have no names, .*{said}"):
        load(source, root=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("dog", "cat"), "their order differs: class 0 is 'dog' instead of 'cat'"),
        (("cat", "bird"), "there is 'bird' and there is no 'dog'"),
    ],
)
def test_a_split_whose_files_number_classes_otherwise_is_refused(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path, names: tuple[str, str], said: str
) -> None:
    two = [picture(0), picture(1)]
    source = make_hub({"train": (two, [0, 1])})
    make_hub({"test": (two, [0, 1])}, classes=names)
    cache = str(tmp_path / "cache")
    assert load(source, root=cache, splits=("train",), val_fraction=0.0).class_names == ("cat", "dog")
    with pytest.raises(DataError, match=rf"'.*test-.*.parquet' must be those of the other files .*{said}"):
        load(source, root=cache, splits=("test",))


def test_classes_that_cannot_be_counted_are_named(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    source = make_hub({"test": ([picture(0)], [1])}, classes=None)
    with pytest.raises(DataError, match=r"split 'train' of .* must be there to count its classes"):
        load(source, root=str(tmp_path / "cache"), splits=("test",))


def test_a_label_outside_the_classes_is_named(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    two = [picture(0), picture(1)]
    source = make_hub({"train": (two, [0, 1]), "test": (two, [0, 3])}, classes=None)
    sentence = r"the label of image 1 of split 'test' of .* must be a class index in 0 to 1, got 3; mend or"
    with pytest.raises(DataError, match=sentence):
        load(source, root=str(tmp_path / "cache"), splits=("test",))
    source = make_hub({"train": (two, [-1, 0]), "test": (two, [0, 3])}, classes=None)
    with pytest.raises(DataError, match=r"label of image 0 of split 'train' of .* got -1"):
        load(source, root=str(tmp_path / "cache"))


def test_labels_in_words_are_refused(make_hub: Callable[..., str], picture: Any, tmp_path: Path) -> None:
    source = make_hub({"train": ([picture(0)], ["cat"])}, classes=None, label_type="string")
    with pytest.raises(
        DataError, match=r"column 'label' of split 'train' .* must hold one class index per image"
    ):
        load(source, root=str(tmp_path / "cache"))


def test_an_unlabelled_test_split_does_not_count(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    two = [picture(0), picture(1)]
    source = make_hub({"train": (two, [0, 1]), "validation": (two, [1, 1]), "test": (two, [-1, -1])})
    data = load(source, root=str(tmp_path / "cache"), val_fraction=0.0)
    assert labels(data.test) == [1, 1]
    assert data.val is None  # rather than the images of the test once more


def test_an_empty_split_is_named(make_hub: Callable[..., str], picture: Any, tmp_path: Path) -> None:
    one = ([picture(0)], [1])
    source = make_hub({"train": one, "validation": one, "test": ([], [])})
    with pytest.raises(DataError, match=r"split 'test' of 'hfds/.*' must hold at least one image, got none"):
        load(source, root=str(tmp_path / "cache"), val_fraction=0.0)


def test_a_broken_image_is_named_by_its_index(
    make_hub: Callable[..., str], picture: Any, tmp_path: Path
) -> None:
    images = [picture(0), {"bytes": b"not an image", "path": None}]
    source = make_hub({"test": (images, [0, 1])})
    with pytest.raises(DataError) as caught:
        load(source, root=str(tmp_path / "cache"), splits=("test",))
    assert str(caught.value) == (
        f"image 1 of split 'test' of {source!r} must be an image that Pillow can decode, got cannot identify "
        "image file; replace or remove it"
    )


def test_an_absent_image_is_named_too(make_hub: Callable[..., str], picture: Any, tmp_path: Path) -> None:
    source = make_hub({"test": ([picture(0), None, picture(1)], [0, 1, 0])})
    with pytest.raises(DataError, match=r"image 1 of split 'test' .* must be an image"):
        load(source, root=str(tmp_path / "cache"), splits=("test",))


@pytest.mark.parametrize("source", ["hfds/../nowhere", "hfds//nowhere/at/all", "hfds/~/nowhere"])
def test_a_missing_local_folder_is_not_looked_for_on_the_network(source: str) -> None:
    with pytest.raises(DataError, match=r"must name a folder after 'hfds/', got none; check the path"):
        load(source)


def test_an_empty_local_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"must be a set that Hugging Face datasets can load, got .*; check"):
        load(f"hfds/{tmp_path / 'nothing'}", root=str(tmp_path / "cache"))


def test_without_network_a_hub_id_leads_to_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError(
            "Couldn't reach 'uoft-cs/cifar10' on the Hub (LocalEntryNotFoundError)\nmore lines"
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataError) as caught:
        load("hfds/uoft-cs/cifar10")
    assert str(caught.value) == (
        "source 'hfds/uoft-cs/cifar10' must be a set that Hugging Face datasets can load, got Couldn't reach "
        "'uoft-cs/cifar10' on the Hub (LocalEntryNotFoundError); check name and network, or point to a local "
        "folder: hfds/<folder>"
    )
