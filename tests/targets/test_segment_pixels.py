"""The runner prepares pictures as training's evaluation does, without Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sidestep.data.preparation import Interpolation, Preparation, pixels_of
from sidestep.plan.format import preparation_entry
from sidestep.targets.sidestep_segments import Segments


def bare(preparation: Preparation | None, size: tuple[int, int], channels: int) -> Segments:
    """Return a runner that knows how pictures are prepared and nothing else."""
    segments = Segments.__new__(Segments)
    entry = {} if preparation is None else {"preparation": preparation_entry(preparation)}
    mean, std = [0.4, 0.5, 0.3][:channels], [0.2, 0.25, 0.3][:channels]
    images = {"channels": channels, "size": list(size), "mean": mean, "std": std}
    segments.route = {"input": images | entry}
    return segments


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [1.0, 0.875])
@pytest.mark.parametrize("shape", [(37, 61), (90, 20), (24, 18), (5, 7)])
def test_pixels_are_those_of_pillow(
    shape: tuple[int, int], share: float, interpolation: Interpolation
) -> None:
    """All but for a level where Pillow, by its release, resizes columns first."""
    rows, columns, colours = np.ogrid[: shape[0], : shape[1], :3]
    waves = np.sin(rows / shape[0] * 5 + colours) * np.cos(columns / shape[1] * 4)
    picture = (127 + 120 * waves).astype(np.uint8)
    preparation = Preparation(size=(24, 18), crop_share=share, interpolation=interpolation)
    found = bare(preparation, (24, 18), 3).pixels(picture)
    pixels = pixels_of(Image.fromarray(picture), preparation).astype(np.float32) / 255
    expected = (pixels - np.float32([0.4, 0.5, 0.3])) / np.float32([0.2, 0.25, 0.3])
    assert found.dtype == np.float32 and found.shape == (3, 24, 18)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1.01 / 255 / 0.2)
    assert (np.abs(found - expected.transpose(2, 0, 1)) < 1e-5).mean() > 0.9


def test_grey_pictures_and_those_of_runs_that_say_nothing() -> None:
    picture = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    found = bare(None, (4, 5), 1).pixels(picture)
    np.testing.assert_allclose(found[0], (picture[:, :, 0] / 255 - 0.4) / 0.2, atol=1e-6)
    with pytest.raises(ValueError, match="so they must be 5 x 4"):
        bare(None, (5, 4), 1).pixels(picture)
    with pytest.raises(ValueError, match=r"a picture must be \(h, w, 3\) of uint8, got \(4, 5, 1\)"):
        bare(None, (4, 5), 3).pixels(picture)
