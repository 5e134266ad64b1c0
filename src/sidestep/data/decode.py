"""From opened splits to batches of uint8 images: decoding, resizing, random crops of photographs."""

from __future__ import annotations

import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidestep.data.data_config import DataConfig
from sidestep.data.histogram import Statistics
from sidestep.data.image_set import Indices
from sidestep.data.sources import SOURCES
from sidestep.data.split import Split, reason, require
from sidestep.errors import DataError

Size = tuple[int, int]

PHOTO_CROP = 224 / 256
_PROBES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How the images of a split become images of one size.

    Attributes:
        size: (H, W) of the result.
        crop: side of the central crop over the shorter side of the resized image. Images of one size are
            framed already, 1; photographs are resized to 256/224 of the size and cropped.
        exact: whether an image of another size is an error, because no size was asked for.
    """

    size: Size
    crop: float
    exact: bool

    @property
    def one_size(self) -> bool:
        """Return whether the images had one size to begin with."""
        return self.crop == 1.0


class Request(NamedTuple):
    """What to decode: images by index, and for random crops what these follow from.

    Attributes:
        indices: which images.
        key: (seed, epoch), or None for the centre.
        views: how often in a row every image comes, each time with another crop.
    """

    indices: Indices
    key: tuple[int, int] | None = None
    views: int = 1

    def seed(self, row: int) -> tuple[int, ...] | None:
        """Return what the crop in a row of the request follows from."""
        if self.key is None:
            return None
        view = (row % self.views,) if self.views > 1 else ()
        return (*self.key, int(self.indices[row]), *view)


class Decoded(NamedTuple):
    """(B, 3, H, W) uint8 images in channels_last memory, (B,) labels, (B, S) statistics or None."""

    images: Tensor
    labels: Tensor
    statistics: Tensor | None


def choose_framing(split: Split, config: DataConfig) -> Framing:
    """Return how a split is framed, judged by the sizes of up to 256 images evenly spread over it.

    Raises:
        DataError: if sizes vary and `image_size` is None.
    """
    probes = np.unique(np.linspace(0, len(split.images) - 1, _PROBES).astype(int)).tolist()
    sizes = {index: _probe(split, index) for index in probes}
    native = sizes[0]
    other = next((index for index in probes if sizes[index] != native), None)
    wanted = config.image_size or SOURCES[config.source].image_size
    if wanted is not None:
        return Framing(size=(wanted, wanted), crop=1.0 if other is None else PHOTO_CROP, exact=False)
    if other is not None:
        raise size_error(split, other, sizes[other], native)
    return Framing(size=native, crop=1.0, exact=True)


def size_error(split: Split, index: int, size: Size, expected: Size) -> DataError:
    """Return the error of an image that is not as large as the others."""
    return DataError(
        f"image_size must be set where images vary in size: {split.images.name(index)} is {size[0]}x{size[1]}"
        f", others {expected[0]}x{expected[1]}; for photographs set image_size: 224"
    )


def _probe(split: Split, index: int) -> Size:
    with _decoding(split, index), split.images.open(index) as image:
        return image.height, image.width


@contextmanager
def _decoding(split: Split, index: int) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise DataError(
            f"{split.images.name(index)} must be an image that Pillow can decode, got {reason(error)}; "
            f"replace or remove it"
        ) from error


class Decoder(Dataset[Decoded | DataError]):
    """Decodes whole batches of a split.

    A DataError is returned and not raised: a DataLoader would bury its sentence in a worker's traceback.

    Args:
        split: what is decoded.
        framing: the size.
        flip: whether random crops are mirrored half of the time.
        statistics: mapping of the finished images, or None.
    """

    def __init__(
        self, split: Split, framing: Framing, *, flip: bool, statistics: Statistics | None = None
    ) -> None:
        create_transform = require("timm.data", split.name).create_transform
        shared = {"input_size": framing.size, "interpolation": "bilinear", "normalize": False}
        self.split = split
        self.framing = framing
        self.statistics = statistics
        self._frame: Callable[[Image.Image], Tensor] = create_transform(**shared, crop_pct=framing.crop)
        self._random_crop: Callable[[Image.Image], Tensor] = create_transform(
            **shared, is_training=True, hflip=0.5 if flip else 0.0, color_jitter=None
        )

    def __getitem__(self, request: Request) -> Decoded | DataError:
        pixels = np.empty((len(request.indices), *self.framing.size, 3), np.uint8)
        try:
            for row, index in enumerate(request.indices.tolist()):
                pixels[row] = self._decode(index, request.seed(row))
        except DataError as error:
            return error
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        labels = self.split.labels[torch.from_numpy(request.indices)]
        return Decoded(images, labels, None if self.statistics is None else self.statistics(images))

    def _decode(self, index: int, seed: tuple[int, ...] | None) -> Any:
        with _decoding(self.split, index), self.split.images.open(index) as image:
            size = image.height, image.width
            if self.framing.exact and size != self.framing.size:
                raise size_error(self.split, index, size, self.framing.size)
            rgb = _to_rgb(image)
            if seed is not None:
                with _seeded(seed):
                    return self._random_crop(rgb).permute(1, 2, 0)
            if size == self.framing.size and self.framing.one_size:
                return rgb
            return self._frame(rgb).permute(1, 2, 0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of mode {image.mode}, which have more than 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow warns to
    return image.convert("RGB")


@contextmanager
def _seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Draw from a key where timm and torchvision draw from global state, and restore that."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    generator = torch.default_generator
    state, python_state = generator.get_state(), random.getstate()
    random.seed(seed)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        generator.set_state(state)


def decode_batches(
    decoder: Decoder, requests: Sequence[Request], *, workers: int, pin_memory: bool = False
) -> Iterator[Decoded]:
    """Return the decoded requests in their order.

    Args:
        decoder: what decodes a request.
        requests: all batches that will be wanted.
        workers: processes that decode ahead; 0 decodes in this one.
        pin_memory: whether images come in memory that a GPU can copy from on its own.

    Raises:
        DataError: at the first image that cannot be decoded.
    """
    with warnings.catch_warnings():
        # `workers` is the user's word, also where there are fewer cores: decoding waits for disks as well.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            decoder,
            sampler=requests,
            batch_size=None,
            num_workers=min(workers, len(requests)),
            pin_memory=pin_memory,
            multiprocessing_context=_start_method() if workers and requests else None,
            generator=torch.Generator(),  # or else every pass over the images would draw from the global one
        )
        batches = iter(loader)
    for decoded in batches:
        if isinstance(decoded, DataError):
            raise decoded
        yield decoded


def _start_method() -> str:
    """Return how processes are started by default; named, it is not fixed for the rest of the program."""
    chosen: str | None = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]
