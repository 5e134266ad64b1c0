"""Small pictures of chosen images, all in one."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from sidestep.reporting.image_table import Array

# Pixels of the longer side of a picture, at most, and pictures in a row.
_SIDE, _COLUMNS = 64, 50
_QUALITY = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """Pictures of images in rows of one picture.

    Attributes:
        ids: numbers of the images in their split, in the order of the pictures.
        size: (width, height) of one in pixels.
        columns: pictures in a row.
        picture: all of them.
        originals: (H, W, C) uint8 pixels of every one as networks see it, where they were to be kept.
    """

    ids: list[int]
    size: tuple[int, int]
    columns: int
    picture: Image.Image
    originals: tuple[Array, ...] = ()

    def as_uri(self) -> str:
        """Return the picture as a data URI."""
        content = BytesIO()
        self.picture.save(content, format="WEBP", quality=_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()

    def sheet(self, ids: Sequence[int], columns: int) -> Image.Image:
        """Return a picture of some of the images, in rows."""
        (width, height), places = self.size, {image: place for place, image in enumerate(self.ids)}
        sheet = Image.new("RGB", (columns * width, max(1, math.ceil(len(ids) / columns)) * height), "white")
        for number, image in enumerate(ids):
            left, top = places[image] % self.columns * width, places[image] // self.columns * height
            tile = self.picture.crop((left, top, left + width, top + height))
            sheet.paste(tile, (number % columns * width, number // columns * height))
        return sheet


def make_sprite(pixels: Iterable[Array], chosen: Sequence[int], *, originals: bool = False) -> Sprite:
    """Return small pictures of chosen images.

    Args:
        pixels: (H, W, C) uint8 of every one.
        chosen: their numbers in their split, rising.
        originals: whether their own pixels are kept too.
    """
    tiles: list[Image.Image] = []
    full: list[Array] = []
    for image in pixels:
        tiles.append(_tile(image))
        if originals:
            full.append(image)
    width, height = tiles[0].size
    columns = min(_COLUMNS, len(tiles))
    picture = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for place, tile in enumerate(tiles):
        picture.paste(tile, (place % columns * width, place // columns * height))
    return Sprite(
        ids=list(chosen), size=(width, height), columns=columns, picture=picture, originals=tuple(full)
    )


def _tile(picture: Array) -> Image.Image:
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).convert("RGB")
    shrunk = min(1.0, _SIDE / max(image.size))
    return image.resize((max(1, round(shrunk * image.width)), max(1, round(shrunk * image.height))))
