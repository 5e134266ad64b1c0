"""Encoded images on the disk: folders, and sets of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.data.split import (
    TEST_NAMES,
    Role,
    Split,
    choose_split,
    open_encoded,
    reason,
    require,
)
from sidestep.errors import DataError, RecipeError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True, slots=True)
class FolderImages:
    """Images from timm's reader of folders.

    Not timm's ImageDataset: in place of an image that cannot be decoded it returns the next one.
    """

    reader: Any

    def __len__(self) -> int:
        return len(self.reader)

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return open_encoded(self.reader[index][0])

    def name(self, index: int) -> str:
        return f"image {self.reader.filename(index, absolute=True)!r}"


@dataclass(frozen=True, slots=True)
class HubImages:
    """Images from a column, not decoded, of a Hugging Face dataset.

    Not timm's reader of these, which would load the set a second time and, in older versions, makes paths
    lower-case and knows no classes but those of a column "label".
    """

    column: Any
    key: str
    split: str

    def __len__(self) -> int:
        return len(self.column)

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        image = self.column[index][self.key]
        return open_encoded(BytesIO(image["bytes"]) if image["bytes"] else Path(image["path"]).open("rb"))

    def name(self, index: int) -> str:
        return f"image {index} of {self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """A folder with train/<class>/ and test/, validation/ or val/ has no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Settings of "hfds/<hub id or local folder>", a layout that Hugging Face datasets reads.

    Args:
        root: where downloads are kept; the cache of Hugging Face if None.
    """

    root: str | None = None


def check_hub(settings: HubSettings, source: str) -> None:
    """Return if a set is named.

    Raises:
        RecipeError: when nothing follows "hfds/".
    """
    if source == "hfds/":
        raise RecipeError("source must name a hub id or a local folder behind hfds/, got 'hfds/'")


def open_folder(settings: FolderSettings, source: str, role: Role) -> Split | None:
    """Return a split of <source>/<split>/<class>/<image>; classes are numbered in natural order.

    The classes are those of train/, where there is one. Every file that Pillow can read counts as an image.

    Raises:
        DataError: if folders are missing, or hold images that no class or no ending gives a place to.
    """
    root = Path(source).expanduser()
    names = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    name = choose_split(role, names, source)
    if name is None:
        return None
    class_names = _class_folders(root / ("train" if "train" in names else name))
    Image.init()
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN]
    # timm's default endings leave out .webp and .bmp; it says nothing about files that it passes over.
    reader_type = require("timm.data.readers.reader_image_folder", source).ReaderImageFolder
    try:
        reader = reader_type(str(root / name), input_key=";".join(endings))
    except RuntimeError as error:
        raise DataError(
            f"{str(root / name)!r} must hold at least one image, got none; check the source"
        ) from error
    _check_folders(root / name, set(reader.class_to_idx), class_names)
    number = {reader.class_to_idx.get(c): index for index, c in enumerate(class_names)}
    labels = torch.tensor([number[label] for _, label in reader.samples])
    where = f"folder {str(root / name)!r}"
    return Split(
        name=where,
        images=FolderImages(reader),
        labels=labels,
        class_names=class_names,
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    natural_key = require("timm.utils.misc", str(folder)).natural_key
    return tuple(sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=natural_key))


def _check_folders(folder: Path, found: set[str], class_names: Sequence[str]) -> None:
    unknown = sorted(found - set(class_names))
    if unknown:
        raise DataError(
            f"images in {str(folder)!r} must lie in a folder named like a class of the training split, got "
            f"folder {unknown[0]!r}; move or rename it"
        )
    empty = sorted(set(_class_folders(folder)) - found)
    if empty:
        raise DataError(
            f"class folder {str(folder / empty[0])!r} must hold at least one image, got none; remove it"
        )


def open_hub(settings: HubSettings, source: str, role: Role) -> Split | None:
    """Return a split of a set in a layout of Hugging Face datasets.

    A split "test" whose labels are all -1, as those of challenges are, does not count as one.

    Raises:
        DataError: if the set, its splits or its columns are not there.
    """
    name = source.removeprefix("hfds/")
    if name.startswith((".", "/", "~")):
        name = str(Path(name).expanduser())
        if not Path(name).is_dir():
            raise DataError(f"source {source!r} must name a folder after 'hfds/', got none; check the path")
    builder = _prepare(source, name, settings.root)
    features = builder.info.features
    image_key, label_key = (_column(source, features, names) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    present = list(builder.info.splits)
    if role != "train" and "test" in present and (_labels(source, builder, "test", label_key) == -1).all():
        present.remove("test")
    split = choose_split(role, present, source)
    if split is None:
        return None
    labels = _labels(source, builder, split, label_key)
    class_names = tuple(getattr(features[label_key], "names", ()))
    if not class_names:
        class_names = _count_classes(_labels(source, builder, "train", label_key))
    where = f"split {split!r} of {source!r}"
    encoded = require("datasets", source).Image(decode=False)
    column = builder.as_dataset(split).select_columns([image_key]).cast_column(image_key, encoded)
    images = HubImages(column, image_key, where)
    return Split(name=where, images=images, labels=labels, class_names=class_names)


def _prepare(source: str, name: str, cache: str | None) -> Any:
    """Return the builder of a set that is downloaded and unpacked."""
    datasets = require("datasets", source)
    try:
        builder = datasets.load_dataset_builder(name, cache_dir=cache)
        builder.download_and_prepare()
    except Exception as error:  # of many kinds: no network, no such set, no access, no disk, broken files
        raise DataError(
            f"source {source!r} must be a set that Hugging Face datasets can load, got {reason(error)}; "
            f"check name and network, or point to a local folder: hfds/<folder>"
        ) from error
    return builder


def _column(source: str, features: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in features:
            return name
    columns = ", ".join(features)
    raise DataError(
        f"source {source!r} must have a column named {' or '.join(names)}, got {columns}; rename one"
    )


def _labels(source: str, builder: Any, split: str, key: str) -> Tensor:
    where = f"split {split!r} of {source!r}"
    if split not in builder.info.splits:
        raise DataError(
            f"{where} must be there to count its classes, which have no names; add it or the names"
        )
    if not builder.info.splits[split].num_examples:
        raise DataError(f"{where} must hold at least one image, got none; check the source")
    labels = np.asarray(builder.as_dataset(split).select_columns([key]).with_format("numpy")[:][key])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"column {key!r} of {where} must hold one class index per image, got {labels.dtype} of shape "
            f"{labels.shape}; cast it to ClassLabel"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _count_classes(training_labels: Tensor) -> tuple[str, ...]:
    """Return "0", "1", ... up to the largest label, for classes without names."""
    return tuple(str(index) for index in range(int(training_labels.max()) + 1))
