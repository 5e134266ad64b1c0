"""The images of a request, as a network takes them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sidestep.data.preparation import Channels, Preparation, Size, pixels_of, pixels_of_old_plan
from sidestep.data.split import decoding
from sidestep.errors import DataError
from sidestep.serve.refusal import RefusedError, wrong
from sidestep.serve.tensors import InputTensor

# Bytes of numbers that are looked at without a thread.
_QUICK = 2**20
_FORMATS = ("JPEG", "PNG")


def is_quick(tensor: InputTensor) -> bool:
    """Return whether a tensor's images are made sooner than a thread could be asked to make them."""
    raw = tensor.raw
    return raw is not None and tensor.datatype != "BYTES" and len(raw) <= _QUICK


class Pictures:
    """Turns tensors into images of one size.

    Args:
        preparation: of pictures; None for a plan that does not say.
        size: height and width.
        channels: 3 for RGB, 1 for grey.
        max_pixels: of a picture, before it is decoded.
    """

    def __init__(
        self, preparation: Preparation | None, *, size: Size, channels: Channels, max_pixels: float
    ) -> None:
        self.preparation, self.size, self.channels = preparation, size, channels
        self.max_pixels = max_pixels

    def count(self, tensor: InputTensor) -> int:
        """Return how many images a tensor says that it has.

        Raises:
            RefusedError: for a datatype or a shape that is none of images.
        """
        (height, width), channels = self.size, self.channels
        shapes: dict[str, tuple[int, ...]] = {
            "BYTES": (),
            "UINT8": (height, width, channels),
            "FP32": (channels, height, width),
        }
        if tensor.datatype not in shapes:
            raise wrong(
                f"datatype of {tensor.name!r} must be one of {', '.join(shapes)}, got {tensor.datatype!r}"
            )
        sides = shapes[tensor.datatype]
        # Pictures one by one may have a second side of 1, which clients like to send.
        fits = tensor.shape[1:] in ({(), (1,)} if not sides else {sides})
        if not fits or not tensor.shape or not tensor.shape[0]:
            said = ", ".join(map(str, ("N", *sides)))
            raise wrong(f"shape of {tensor.datatype} must be [{said}], N from 1, got {list(tensor.shape)}")
        return tensor.shape[0]

    def images(self, tensor: InputTensor) -> list[npt.NDArray[Any]]:
        """Return (H, W, C) uint8 pixels of every picture, or (C, H, W) floats that were normalised before.

        Raises:
            RefusedError: for what cannot be decoded, is too large, or is no number.
        """
        if tensor.datatype == "BYTES":
            return [self._decode(content, index) for index, content in enumerate(tensor.texts())]
        array = tensor.array()
        if tensor.datatype == "FP32" and not np.isfinite(array).all():
            raise wrong(f"data of {tensor.name!r} must be finite numbers")
        return list(array)

    def _decode(self, content: bytes, index: int) -> npt.NDArray[np.uint8]:
        try:
            with decoding(f"image {index}"), Image.open(BytesIO(content), formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels <= self.max_pixels:
                    if self.preparation is None:
                        return pixels_of_old_plan(image, self.size, self.channels)
                    return pixels_of(image, self.preparation)
        except DataError as error:
            raise wrong(f"{error}") from error
        raise RefusedError(
            413,
            f"image {index} must have at most {self.max_pixels:.0f} pixels, got {pixels}; make it smaller",
        )
