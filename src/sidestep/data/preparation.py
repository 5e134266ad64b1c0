"""The one way from a picture to the pixels that a network sees, in training, evaluation and plans alike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Size = tuple[int, int]
Interpolation = Literal["bilinear", "bicubic"]
Channels = Literal[1, 3]
Pixels = npt.NDArray[np.uint8]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "La")

# What the orientation of EXIF asks for; 1 and everything else leave an image as it lies.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_size(sides: int | Size | None) -> Size | None:
    """Return (H, W) of a side or of two, or None."""
    return (sides, sides) if isinstance(sides, int) else sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How any picture becomes pixels of one size; checkpoints and plans keep it.

    `pixels_of` is the whole of it, and docs/plan.md says the same for other programs.

    Attributes:
        size: (H, W) of the result.
        crop_share: share of the resized picture's side that the crop in its middle keeps; 1 crops only what
            another shape has too much.
        interpolation: how pictures are resized, with antialiasing where they shrink.
        channels: 3 for RGB, 1 for grey.
    """

    size: Size
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    channels: Channels = 3

    def as_dict(self) -> dict[str, Any]:
        """Return plain values of which `preparation_from` makes the same."""
        return {
            "size": list(self.size),
            "crop_share": self.crop_share,
            "interpolation": self.interpolation,
            "channels": self.channels,
        }

    def resized(self, size: Size) -> Size:
        """Return the (height, width) to which a picture of a size is resized before it is cropped.

        The smallest that covers (H, W) / crop_share, rounded down, in the shape of the picture.
        """
        (height, width), (high, wide) = size, (int(side / self.crop_share) for side in self.size)
        if high * width >= wide * height:
            return high, high * width // height
        return wide * height // width, wide


def preparation_from(values: dict[str, Any]) -> Preparation:
    """Return the preparation whose `as_dict` these values are."""
    height, width = values["size"]
    return Preparation(**{**values, "size": (height, width)})


def pixels_of(image: Image.Image, preparation: Preparation) -> Pixels:
    """Return the (H, W, C) uint8 pixels of a picture.

    The picture is turned as its EXIF orientation says, converted to RGB or grey, resized so that it covers
    the size, and cropped in the middle.

    Raises:
        ValueError: for grey of more than 8 bits, whose range no one can know.
    """
    image = upright(image, preparation.channels)
    height, width = preparation.resized((image.height, image.width))
    image = image.resize((width, height), _RESAMPLING[preparation.interpolation])
    rows, columns = preparation.size
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return as_pixels(image.crop((left, top, left + columns, top + rows)))


def pixels_of_old_plan(image: Image.Image, size: Size, channels: Channels) -> Pixels:
    """Return the (H, W, C) uint8 pixels of a picture for a plan that does not say how it is prepared.

    Of the picture the largest part of the size's shape around the middle is resized, bicubic.
    """
    return as_pixels(ImageOps.fit(upright(image, channels), (size[1], size[0])))


def upright(image: Image.Image, channels: Channels) -> Image.Image:
    """Return a picture as people see it, in RGB or grey (ITU-R 601-2 luma); transparency is dropped.

    Raises:
        ValueError: for grey of more than 8 bits. Of colours with 16 bits Pillow reads the upper 8.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of mode {image.mode}, which have more than 8 bits")
    image.load()  # a TIFF is turned by that, and a PNG may have its EXIF behind the pixels
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow warns to
    if channels == 1 and image.mode not in _GREY_MODES:
        image = image.convert("RGB")
    return image.convert(_MODES[channels])


def upright_size(image: Image.Image) -> Size:
    """Return (height, width) of a picture as people see it."""
    if image.format == "TIFF":
        image.load()  # Pillow turns these itself while it decodes them
    size = image.height, image.width
    return (size[1], size[0]) if _orientation(image) >= 5 else size


def as_pixels(image: Image.Image) -> Pixels:
    """Return the (H, W, C) pixels of an image in RGB or grey."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 also where there is none, or EXIF is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # of many kinds, and viewers show such pictures as they lie
            return 1
    return found if found in _TURNS else 1
