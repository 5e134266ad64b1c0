"""Image folders: <source>/<split>/<class>/, with an image in every file that Pillow can read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from sidestep.data.split import TEST_NAMES, Role, Split, choose_split, open_encoded, shown_name
from sidestep.errors import DataError

# Folders that systems leave beside others; those that begin with a dot are hidden anyway.
_LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found")


@dataclass(frozen=True, slots=True)
class FolderImages:
    """Images in files."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return open_encoded(self.paths[index].open("rb"))

    def name(self, index: int) -> str:
        return f"image {str(self.paths[index].absolute())!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """A folder with train/<class>/ and test/, validation/ or val/ has no settings."""


def open_folder(settings: FolderSettings, source: str, role: Role) -> Split | None:
    """Return a split of <source>/<split>/<class>/; classes are numbered in natural order.

    The classes are the folders in train/, where there is one. Files that end like an image, whatever their
    case, are images of the class folder in which they lie, at any depth. Hidden files and folders, and what
    systems leave (`__MACOSX`), are passed over. A link to a file is that file.

    Raises:
        DataError: for folders that are missing or empty, images outside of a class folder, and links to
            folders, of which no one can say whether the same images are meant again.
    """
    root = Path(source).expanduser()
    names = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    name = choose_split(role, names, source, "images lie in train/<class>/ and test/<class>/ of the source")
    if name is None:
        return None
    class_names = _class_folders(root / ("train" if "train" in names else name))
    folder = root / name
    found = _class_folders(folder)
    _check_folders(folder, found, class_names)
    paths, labels = [], []
    for class_name in found:
        images = _images_below(folder / class_name)
        if not images:
            raise DataError(
                f"class folder {str(folder / class_name)!r} must hold at least one image, got none; remove it"
            )
        paths += images
        labels += [class_names.index(class_name)] * len(images)
    # One order over all classes, by what is written after the split's folder.
    order = sorted(range(len(paths)), key=lambda i: _natural_key(os.path.relpath(paths[i], folder)))
    return Split(
        name=f"folder {str(folder)!r}",
        images=FolderImages([paths[i] for i in order]),
        labels=torch.tensor([labels[i] for i in order]),
        class_names=class_names,
    )


def _check_folders(folder: Path, found: Sequence[str], class_names: Sequence[str]) -> None:
    """Refuse images outside of a class folder, folders of unknown classes, and a split without any."""
    astray = next((entry for entry in _entries(folder) if entry.is_file() and _is_image(entry.name)), None)
    if astray is not None:
        raise DataError(
            f"image {astray.path!r} must lie in the folder of its class, {str(folder / '<class>')!r}, got "
            "none around it; move or remove it"
        )
    unknown = [name for name in found if name not in set(class_names)]
    if unknown:
        raise DataError(
            f"folder {str(folder / unknown[0])!r} must be named like a class of the training split, "
            f"{', '.join(map(shown_name, class_names[:5]))}{', ...' * (len(class_names) > 5)}, got folder "
            f"{unknown[0]!r}; move or rename it"
        )
    if not found:
        raise DataError(
            f"{str(folder)!r} must hold at least one image, in a folder for each class, got none; check the "
            "source"
        )


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, in natural order."""
    return tuple(sorted((e.name for e in _entries(folder) if _is_folder(e)), key=_natural_key))


def _images_below(folder: Path) -> list[Path]:
    images: list[Path] = []
    for entry in _entries(folder):
        if _is_folder(entry):
            images += _images_below(folder / entry.name)
        elif _is_image(entry.name):
            images.append(folder / entry.name)
    return images


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder, but for what is hidden."""
    try:
        with os.scandir(folder) as entries:
            yield from (e for e in entries if not e.name.startswith(".") and e.name not in _LEFT_BY_SYSTEMS)
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} must be readable, got {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink() and entry.is_dir():
        raise DataError(
            f"{entry.path!r} must be a folder, got a link to {os.path.realpath(entry.path)!r}, whose images "
            "could count twice; put a folder with the images, or with links to them, in its place"
        )
    return entry.is_dir()


def _is_image(name: str) -> bool:
    Image.init()
    kind = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    return kind in Image.OPEN


def _natural_key(name: str) -> tuple[list[int | str], str]:
    """Return what sorts "class9" in front of "class10"."""
    parts = re.split(r"(\d+)", name.lower())
    # Every other part is a number, so that numbers are compared with numbers alone.
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
