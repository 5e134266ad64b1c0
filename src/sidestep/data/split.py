"""The splits of an image set, opened but not decoded: what every source of data returns."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from sidestep.errors import DataError

Role = Literal["train", "val", "test"]

TEST_NAMES = ("test", "validation", "val")
# So many images of a split are compared with those of another day.
_COMPARED = 1024


class Images(Protocol):
    """The images of a split, by index."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """Return an image whose pixels may not be decoded yet."""
        ...

    def name(self, index: int) -> str:
        """Return what an error calls the image."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One split of an image set.

    Attributes:
        name: what an error calls the split.
        images: N images.
        labels: (N,) class indices.
        class_names: name of each class, as `shown_name` writes it.
    """

    name: str
    images: Images
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(shown_name(name) for name in self.class_names))
        if not len(self.images):
            raise DataError(f"{self.name} must hold at least one image, got none; check the source")
        outside = (self.labels < 0) | (self.labels >= len(self.class_names))
        if outside.any():
            index = int(outside.int().argmax())
            raise DataError(
                f"the label of {self.images.name(index)} must be a class index in 0 to "
                f"{len(self.class_names) - 1}, got {int(self.labels[index])}; mend or remove it"
            )


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Images from a (N, H, W) or (N, H, W, 3) uint8 array."""

    pixels: npt.NDArray[np.uint8]
    split: str

    def __len__(self) -> int:
        return len(self.pixels)

    @contextmanager
    def open(self, index: int) -> Iterator[Image.Image]:
        yield Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"image {index} of {self.split}"


def shown_name(name: str) -> str:
    r"""Return a name of a file or a class as Unicode that every file and screen can hold.

    Names on a disk are bytes; where they are no UTF-8, Python holds what no file takes.

    >>> print(shown_name("caf\udce9"))
    caf\udce9
    """
    return name.encode(errors="backslashreplace").decode()


@contextmanager
def open_encoded(file: IO[bytes]) -> Iterator[Image.Image]:
    """Return an image file as an image, closed at the end."""
    with file, _identify(file) as image:
        yield image


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever opening or decoding an image raises into one sentence.

    Args:
        name: what the error calls the image.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise DataError(
            f"{name} must be an image that Pillow can decode, got {reason(error)}; replace or remove it"
        ) from error


def content_of(split: Split) -> str:
    """Return what the images of a split are known by, whatever they are called: a digest of their files.

    Of more than 1024 images 1024 are looked at, evenly spread. Files are not decoded, which releases of
    decoders do not do alike to the last bit.
    """
    digest = hashlib.sha256()
    places = np.linspace(0, len(split.images) - 1, min(_COMPARED, len(split.images))).astype(int)
    for index in places.tolist():
        try:
            with split.images.open(index) as image:
                file = image.fp if isinstance(image, ImageFile) else None
                if file is None:
                    content = image.tobytes()
                else:
                    file.seek(0)
                    content = file.read()
        except Exception:  # of many kinds; whoever needs the image says what is wrong with it
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:8]


def _identify(file: IO[bytes]) -> Image.Image:
    # Left to itself, Pillow tries seven formats before WebP: 40 % of the time that a 32x32 image takes.
    try:
        return Image.open(file, formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError:
        return Image.open(file)


def require(module: str, source: str) -> ModuleType:
    """Return a module that not every installation has.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise DataError(
            f"source {source!r} needs the package {package}: {error}; pip install {package}"
        ) from error


def choose_split(
    role: Role, present: list[str], source: str, way_out: str = "rename one, or do not ask for it"
) -> str | None:
    """Return the name of the split that plays a role, or None where a set has no validation of its own.

    "test" is played by the first of test, validation and val; "val" by validation or val if another split
    is the test split.

    Raises:
        DataError: if there is none to train or to test on.
    """
    test = next((name for name in TEST_NAMES if name in present), None)
    if role == "val":
        return next((name for name in ("validation", "val") if name in present and name != test), None)
    chosen = test if role == "test" else next((name for name in present if name == "train"), None)
    if chosen is None:
        wanted = "one of test, validation, val" if role == "test" else "train"
        found = ", ".join(present) or "none"
        raise DataError(f"source {source!r} must have a split named {wanted}, got {found}; {way_out}")
    return chosen


def class_difference(found: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return in words how classes differ from those that are wanted, or None where they do not."""
    if tuple(found) == tuple(wanted):
        return None
    strange = [name for name in found if name not in set(wanted)]
    missing = [name for name in wanted if name not in set(found)]
    if strange or missing:
        parts = [("there is", strange), ("there is no", missing)]
        return " and ".join(f"{words} {_listed(names)}" for words, names in parts if names)
    if len(found) != len(wanted):
        return f"there are {len(found)} instead of {len(wanted)}"
    index = next(i for i, name in enumerate(found) if name != wanted[i])
    return f"their order differs: class {index} is {found[index]!r} instead of {wanted[index]!r}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message, without addresses of objects, or else its type."""
    lines = str(error).partition(" <_io.")[0].splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
