"""Splits that are read with timm: folders of images, and sets of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.data.config import SOURCES
from sidestep.data.sources import TEST_NAMES, EncodedImages, Role, Split, choose_split, reason, require
from sidestep.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def open_folder(source: str, role: Role) -> Split | None:
    """Return a split of <source>/<split>/<class>/<image>; classes are numbered in natural order.

    The classes are those of train/, where there is one. Every file that Pillow can read counts as an image.

    Raises:
        DataError: if folders are missing, or hold images that no class or no ending gives a place to.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        raise DataError(f"source must be {SOURCES}, got {source!r}, which is no folder; check the path")
    names = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    name = choose_split(role, names, source)
    if name is None:
        return None
    class_names = _class_folders(root / ("train" if "train" in names else name))
    Image.init()
    endings = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN]
    # timm's default endings leave out .webp and .bmp; it says nothing about files that it passes over.
    create_reader = require("timm.data.readers", source).create_reader
    try:
        reader = create_reader("", root=str(root / name), input_key=";".join(endings))
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
        images=EncodedImages(reader, where, has_paths=True),
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


def open_hub(source: str, cache: str | None, role: Role) -> Split | None:
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
    info = _prepare(source, name, cache)
    image_key, label_key = (_column(source, info, names) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    create_reader = require("timm.data.readers", source).create_reader

    def read(split: str) -> tuple[Any, Tensor]:
        keys = {"input_key": image_key, "target_key": label_key}
        reader = create_reader(f"hfds/{name}", root=cache, split=split, **keys)
        return reader, _labels(reader, label_key, f"split {split!r} of {source!r}")

    present = list(info.splits)
    if role != "train" and "test" in present:
        labels = read("test")[1]
        if len(labels) and (labels == -1).all():
            present.remove("test")
    split = choose_split(role, present, source)
    if split is None:
        return None
    where = f"split {split!r} of {source!r}"
    reader, labels = read(split)
    class_names = tuple(reader.class_to_idx)
    if not class_names:
        class_names = _count_classes(labels if role == "train" else read("train")[1])
    images = EncodedImages(reader, where, has_paths=False)
    return Split(name=where, images=images, labels=labels, class_names=class_names)


def _prepare(source: str, name: str, cache: str | None) -> Any:
    """Return the description of a set, downloaded and unpacked: `splits` and `features`."""
    datasets = require("datasets", source)
    try:
        builder = datasets.load_dataset_builder(name, cache_dir=cache)
        builder.download_and_prepare()
    except Exception as error:  # of many kinds: no network, no such set, no access, no disk, broken files
        raise DataError(
            f"source {source!r} must be a set that Hugging Face datasets can load, got {reason(error)}; "
            f"check name and network, or point to a local folder: hfds/<folder>"
        ) from error
    return builder.info


def _column(source: str, info: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in info.features:
            return name
    columns = ", ".join(info.features)
    raise DataError(
        f"source {source!r} must have a column named {' or '.join(names)}, got {columns}; rename one"
    )


def _labels(reader: Any, key: str, where: str) -> Tensor:
    column = reader.dataset.select_columns([key]).with_format("numpy")[:][key]
    labels = np.asarray(column)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        if not len(labels):
            return torch.zeros(0, dtype=torch.int64)
        raise DataError(
            f"column {key!r} of {where} must hold one class index per image, got {labels.dtype} of shape "
            f"{labels.shape}; cast it to ClassLabel"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _count_classes(training_labels: Tensor) -> tuple[str, ...]:
    """Return "0", "1", ... up to the largest label, for classes without names."""
    largest = int(training_labels.max()) if len(training_labels) else -1
    return tuple(str(index) for index in range(largest + 1))
