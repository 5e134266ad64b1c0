"""Image sets of Hugging Face datasets, on the hub or in a folder in one of their layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidestep.data.split import (
    Role,
    Split,
    choose_split,
    class_difference,
    open_encoded,
    reason,
    require,
)
from sidestep.errors import DataError, RecipeError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


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
    _check_own_names(source, builder, split, label_key, class_names)
    if not class_names:
        class_names = _count_classes(
            _labels(source, builder, "train", label_key), f"split 'train' of {source!r}"
        )
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


def _check_own_names(source: str, builder: Any, split: str, key: str, class_names: tuple[str, ...]) -> None:
    """Refuse a split whose own files number the classes otherwise.

    Hugging Face datasets takes the names of the first file for those of all, and labels as they are. Files
    that are not on this disk cannot be looked at.
    """
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    for file in (file for file in files if file.endswith(".parquet") and Path(file).is_file()):
        schema = require("pyarrow.parquet", source).read_schema(file)
        found = require("datasets", source).Features.from_arrow_schema(schema).get(key)
        difference = class_difference(getattr(found, "names", None) or class_names, class_names)
        if difference is not None:
            raise DataError(
                f"the classes of {file!r} must be those of the other files of {source!r}, by name and order, "
                f"but {difference}; cast the columns to one ClassLabel"
            )


def _count_classes(labels: Tensor, where: str) -> tuple[str, ...]:
    """Return "0", "1", ... up to the largest of the training labels, for classes without names.

    Raises:
        DataError: for labels that leave numbers out, which would become classes without an image.
    """
    present = {label for label in labels.tolist() if label >= 0}
    count = max(present, default=-1) + 1
    if count != len(present):
        missing = list(islice((number for number in range(count) if number not in present), 5))
        found = ", ".join(map(str, sorted(present)[:5])) + ", ..." * (len(present) > 5)
        more = count - len(present) - len(missing)
        raise DataError(
            f"labels of {where}, which have no names, must be 0 to {len(present) - 1} for its {len(present)} "
            f"classes, got {found} without {', '.join(map(str, missing))}{f' and {more} more' * (more > 0)}; "
            "number them without gaps, or cast the column to ClassLabel with names"
        )
    return tuple(str(index) for index in range(count))
