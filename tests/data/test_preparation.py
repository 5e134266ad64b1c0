"""One preparation of pictures: by hand, as timm's evaluation does it, whatever the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sidestep.data.preparation import (
    Preparation,
    pixels_of,
    pixels_of_old_plan,
    preparation_from,
    upright,
    upright_size,
)

SIZES = [(24, 24), (36, 60), (61, 37), (25, 24), (24, 300), (7, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_share", [1.0, 224 / 256, 0.95])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_timms_evaluation(
    picture: Any, size: tuple[int, int], crop_share: float, interpolation: Any
) -> None:
    from timm.data import create_transform

    transform = create_transform(24, interpolation=interpolation, crop_pct=crop_share, normalize=False)
    image = picture(0, size)
    preparation = Preparation(size=(24, 24), crop_share=crop_share, interpolation=interpolation)
    assert np.array_equal(pixels_of(image, preparation), transform(image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", SIZES)
def test_a_rectangle_is_covered_and_cropped_in_the_middle(picture: Any, size: tuple[int, int]) -> None:
    preparation = Preparation(size=(12, 20))
    height, width = preparation.resized(size)
    assert (height == 12 and width >= 20) or (width == 20 and height >= 12)
    assert abs(height * size[1] - width * size[0]) <= max(size)
    assert pixels_of(picture(0, size), preparation).shape == (12, 20, 3)


def test_an_image_of_the_size_stays_as_it_is(picture: Any) -> None:
    image = picture(0, (12, 20))
    assert np.array_equal(pixels_of(image, Preparation(size=(12, 20))), np.asarray(image))
    cropped = pixels_of(picture(1, (12, 24)), Preparation(size=(12, 20)))
    assert np.array_equal(cropped, np.asarray(picture(1, (12, 24)))[:, 2:22])


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("P", False), ("RGBA", False), ("CMYK", False)]
)
def test_every_mode_becomes_rgb_or_grey(picture: Any, mode: str, grey: bool) -> None:
    image = picture(3).convert(mode)
    rgb, one = (pixels_of(image, Preparation(size=(12, 12), channels=c)) for c in (3, 1))
    assert (rgb.shape, one.shape) == ((12, 12, 3), (12, 12, 1))
    assert np.array_equal(rgb, np.asarray(image.convert("RGB")))
    assert np.array_equal(one[:, :, 0], np.asarray(image.convert("RGB").convert("L")))
    assert np.array_equal(rgb[:, :, :1], one) == grey


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_of_more_than_8_bits_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"pixels of mode {mode}, which have more than 8 bits"):
        pixels_of(Image.new(mode, (4, 4)), Preparation(size=(4, 4)))
    with pytest.raises(ValueError, match="more than 8 bits"):
        pixels_of_old_plan(Image.new(mode, (4, 4)), (4, 4), 3)


def turned_by_hand(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Return what EXIF means: where row 0 and column 0 of what is stored are to be seen."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_pictures_are_seen_as_exif_says(picture: Any, tmp_path: Path, orientation: int, ending: str) -> None:
    image, exif = picture(4, (6, 10)), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{ending}", exif=exif, lossless=True)
    with Image.open(tmp_path / f"a.{ending}") as opened:
        expected = turned_by_hand(np.asarray(image), orientation)
        assert upright_size(opened) == expected.shape[:2]
        assert np.array_equal(np.asarray(upright(opened, 3)), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of Pillow, when it opens the file
@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_damaged_exif_leaves_a_picture_as_it_lies(picture: Any, tmp_path: Path, exif: bytes) -> None:
    picture(5, (6, 10)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert upright_size(image) == (6, 10)
        assert upright(image, 3).size == (10, 6)
    turned = Image.Exif()
    turned[0x0112] = 9
    picture(5, (6, 10)).save(tmp_path / "b.jpg", exif=turned)
    with Image.open(tmp_path / "b.jpg") as image:
        assert upright_size(image) == (6, 10)


def test_plain_values_make_the_same_preparation() -> None:
    made = Preparation(size=(12, 20), crop_share=0.875, interpolation="bicubic", channels=1)
    assert preparation_from(made.as_dict()) == made
    assert preparation_from(replace(made, size=(1, 2)).as_dict()) != made


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_turned_picture_counts_as_it_is_seen(
    make_folder: Callable[..., Path], picture: Any, storage: str
) -> None:
    from tests.data.loading import load, pixels, raw

    root, exif = make_folder(count=2, sizes=((10, 14),)), Image.Exif()
    exif[0x0112] = 6
    picture(9, (14, 10)).save(root / "test" / "cat" / "1.png", exif=exif)
    seen = pixels(load(root, splits=("test",), storage=storage).test)
    expected = raw(picture(9, (14, 10)).transpose(Image.Transpose.ROTATE_270))
    assert (seen[1] - expected).abs().max() < 1e-6
