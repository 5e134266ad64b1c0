"""The classes of a network that the labels of an image set mean, where the set has fewer or other ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sidestep.data.split import Split
from sidestep.errors import DataError, RecipeError

IMAGENET = "imagenet"


def check_meant(classes: int | str | None, indices: Sequence[int] | None) -> None:
    """Return if the settings of classes suit each other.

    Raises:
        RecipeError: for one without the other, or indices that are none of distinct classes.
    """
    if classes is None and indices is None:
        return
    if classes is None or indices is None:
        given, other = ("class_indices", "classes") if classes is None else ("classes", "class_indices")
        value = indices if classes is None else classes
        raise RecipeError(
            f"{given} has no effect without {other}, got {value}; classes are those of the "
            f"network (their number, a file of names, or {IMAGENET}), class_indices what the labels "
            "mean among them"
        )
    if isinstance(classes, bool) or (isinstance(classes, int) and classes < 2):
        raise RecipeError(f"classes must be 2 or more, a file of names, or {IMAGENET}, got {classes}")
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise RecipeError(
            f"class_indices must be one index of a class for every label, 0 or more and all different, got "
            f"{list(indices)}"
        )
    if isinstance(classes, int) and max(indices) >= classes:
        raise RecipeError(f"class_indices must be below classes, {classes}, got {max(indices)}")


def with_meant_classes(split: Split, classes: int | str | None, indices: Sequence[int] | None) -> Split:
    """Return a split whose labels are those of a network's classes.

    The classes that the set has keep their names, by which other sets are compared with it.

    Args:
        split: of the set.
        classes: of the network, see `DataConfig`; None leaves the split as it is.
        indices: what every label of the set means among them.

    Raises:
        DataError: when the set has not one class for every index.
    """
    if classes is None or indices is None:
        return split
    names = list(_names_of(classes))
    if len(indices) != len(split.class_names):
        count, shown = len(split.class_names), ", ".join(split.class_names[:10])
        raise DataError(
            f"class_indices must be one for each of the {count} classes of {split.name}, got {len(indices)}; "
            f"its classes are {shown}{', ...' * (count > 10)}"
        )
    if max(indices) >= len(names):
        raise DataError(
            f"class_indices must be below the {len(names)} names of {classes}, got {max(indices)}"
        )
    for label, (index, name) in enumerate(zip(indices, split.class_names, strict=True)):
        if name != str(label):
            names[index] = name
    return replace(split, labels=torch.tensor(indices)[split.labels], class_names=tuple(names))


def _names_of(classes: int | str) -> Sequence[str]:
    if isinstance(classes, int):
        return [str(index) for index in range(classes)]
    if classes == IMAGENET:
        return _imagenet()
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DataError(
            f"classes must be a number, {IMAGENET}, or a text file of names, got {classes!r} ({why}); write "
            "one name a line"
        ) from error
    if len(lines) < 2 or not all(line.strip() for line in lines):
        raise DataError(f"classes {classes!r} must have two lines or more, each the name of a class; mend it")
    return [line.strip() for line in lines]


def _imagenet() -> Sequence[str]:
    """Return the first names of ImageNet's 1,000 classes, with numbers of WordNet where two share one."""
    # Imported where it is needed, since timm takes seconds.
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} ({info.index_to_label_name(index)})"
        for index, name in enumerate(names)
    ]
