"""Sources of data by name: where a recipe's images come from, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sidestep.data.downloads import DigitsSettings, TorchSettings, check_torch, open_digits, open_torch
from sidestep.data.folders import FolderSettings, open_folder
from sidestep.data.hub_sets import HubSettings, check_hub, open_hub
from sidestep.data.preparation import Size
from sidestep.data.split import Role, Split
from sidestep.errors import DataError
from sidestep.registry import Registry, did_you_mean

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource(Generic[Settings]):
    """Where images come from.

    Attributes:
        name: as recipes say it; "torch/<name>" stands for all names that begin like it.
        summary: one line for lists.
        settings: frozen dataclass of its options, keys of a recipe's `data:` besides those of `DataConfig`.
        open: (settings, name, role) -> the split that plays a role ("train", "val" or "test"), not decoded.
            None instead of "val" where the set has no validation split of its own.
        check: (settings, name) -> None; raises RecipeError for a name that cannot be opened.
        image_size: side, or height and width, that images get where a recipe does not say; None keeps theirs.
    """

    name: str
    summary: str
    settings: type[Settings]
    open: Callable[[Settings, str, Role], Split | None]
    check: Callable[[Settings, str], None] | None = None
    image_size: int | Size | None = None


def register_source(source: DataSource[Any]) -> None:
    """Let recipes name a source of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    SOURCES.add(source)


def _check_folder(settings: FolderSettings, source: str) -> None:
    if not source:
        raise SOURCES.unknown(source)


def _open_folder(settings: FolderSettings, source: str, role: Role) -> Split | None:
    if not Path(source).expanduser().is_dir():
        way_out = did_you_mean(source, SOURCES) or "; check the path"
        raise DataError(
            f"source must be one of {', '.join(SOURCES)}, got {source!r}, which is no folder{way_out}"
        )
    return open_folder(settings, source, role)


_DIGITS = DataSource(
    name="digits",
    summary="scikit-learn's 8x8 digits: 1,500 to train on and 297, by other writers, to test on",
    settings=DigitsSettings,
    open=open_digits,
    image_size=32,
)
_TORCH = DataSource(
    name="torch/<cifar10 or cifar100>",
    summary="what torchvision downloads",
    settings=TorchSettings,
    open=open_torch,
    check=check_torch,
)
_HUB = DataSource(
    name="hfds/<hub id or local folder>",
    summary="a layout that Hugging Face datasets reads",
    settings=HubSettings,
    open=open_hub,
    check=check_hub,
)
_FOLDER = DataSource(
    name="<image folder>",
    summary="a folder with train/<class>/ and test/, validation/ or val/",
    settings=FolderSettings,
    open=_open_folder,
    check=_check_folder,
)

SOURCES: Registry[DataSource[Any]] = Registry("source", [_DIGITS, _TORCH, _HUB, _FOLDER], key="source")
