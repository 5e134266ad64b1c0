"""Image sets of other packages, as arrays: scikit-learn's digits, and what torchvision downloads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sidestep.data.split import ArrayImages, Role, Split, reason, require
from sidestep.errors import DataError, RecipeError

_TORCH_SETS = ("torch/cifar10", "torch/cifar100")


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsSettings:
    """scikit-learn's digits, which come with the package, have no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSettings:
    """Settings of "torch/cifar10" and "torch/cifar100".

    Args:
        root: folder that holds or gets the download.
    """

    root: str


def check_torch(settings: TorchSettings, source: str) -> None:
    """Return if torchvision has the set.

    Raises:
        RecipeError: naming those that it has.
    """
    if source not in _TORCH_SETS:
        raise RecipeError(f"source must be one of {', '.join(_TORCH_SETS)} of torchvision's, got {source!r}")


def open_digits(settings: DigitsSettings, source: str, role: Role) -> Split | None:
    """Return the first 1,500 or the last 297 of scikit-learn's digits, which come ordered by writer."""
    if role == "val":
        return None
    digits = require("sklearn.datasets", source).load_digits()
    part = slice(1500) if role == "train" else slice(1500, None)
    name = f"split {role!r} of {source!r}"
    pixels = np.round(digits.images[part] * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(digits.target[part])
    class_names = tuple(str(digit) for digit in range(10))
    return Split(name=name, images=ArrayImages(pixels, name), labels=labels, class_names=class_names)


def open_torch(settings: TorchSettings, source: str, role: Role) -> Split | None:
    """Return a split of a set that torchvision downloads.

    Raises:
        DataError: if it is neither under `settings.root` nor can be downloaded.
    """
    if role == "val":
        return None
    create_dataset = require("timm.data", source).create_dataset
    try:
        dataset = create_dataset(source, root=settings.root, split=role, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"source {source!r} must lie under root {settings.root!r} or be downloadable, got "
            f"{reason(error)}; copy it there, or set source: hfds/<local folder>"
        ) from error
    name = f"split {role!r} of {source!r}"
    labels = torch.tensor(dataset.targets)
    return Split(
        name=name, images=ArrayImages(dataset.data, name), labels=labels, class_names=tuple(dataset.classes)
    )
