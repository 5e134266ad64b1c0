"""From opened splits to batches of uint8 images: decoding, resizing, random crops of photographs."""

from __future__ import annotations

import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidestep.data.data_config import DataConfig
from sidestep.data.histogram import Statistics
from sidestep.data.image_set import Indices
from sidestep.data.preparation import Pixels, Preparation, Size, pixels_of, upright, upright_size
from sidestep.data.split import Split, decoding, require
from sidestep.errors import DataError

PHOTO_CROP = 224 / 256
_PROBES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How the images of a split are prepared, and what is known of their sizes.

    Attributes:
        preparation: what is done to every image.
        one_size: whether the images have one size to begin with, as far as 256 of them say.
        exact: whether an image of another size is an error, because no size was asked for.
    """

    preparation: Preparation
    one_size: bool
    exact: bool

    @property
    def size(self) -> Size:
        """Return (H, W) of what the network sees."""
        return self.preparation.size


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
    """(B, C, H, W) uint8 images in channels_last memory, (B,) labels, (B, S) statistics or None."""

    images: Tensor
    labels: Tensor
    statistics: Tensor | None


def choose_framing(split: Split, config: DataConfig, like: Preparation | None = None) -> Framing:
    """Return how a split is framed, judged by the sizes of up to 256 images evenly spread over it.

    Args:
        split: what is framed.
        config: settings; what they leave open the images decide.
        like: how images of the same run are prepared, which leaves nothing open but the size of images that
            keep theirs.

    Raises:
        DataError: if sizes vary and `image_size` is None.
    """
    probes = np.unique(np.linspace(0, len(split.images) - 1, _PROBES).astype(int)).tolist()
    sizes = {index: _probe(split, index) for index in probes}
    native = sizes[0]
    other = next((index for index in probes if sizes[index] != native), None)
    wanted = config.size
    if wanted is None and other is not None:
        raise size_error(split, other, sizes[other], native)
    judged = PHOTO_CROP if other is not None else 1.0
    preparation = like or Preparation(
        size=wanted or native,
        crop_share=judged if config.crop_share is None else config.crop_share,
        interpolation=config.interpolation,
        channels=config.channels,
    )
    if wanted is None:
        preparation = replace(preparation, size=native)
    return Framing(preparation=preparation, one_size=other is None, exact=wanted is None)


def size_error(split: Split, index: int, size: Size, expected: Size) -> DataError:
    """Return the error of an image that is not as large as the others."""
    return DataError(
        f"image_size must be set where images vary in size: {split.images.name(index)} is {size[0]}x{size[1]}"
        f", others {expected[0]}x{expected[1]}; for photographs set image_size: 224"
    )


def _probe(split: Split, index: int) -> Size:
    with decoding(split.images.name(index)), split.images.open(index) as image:
        return upright_size(image)


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
        self.split = split
        self.framing = framing
        self.flip = flip
        self.statistics = statistics

    def __getitem__(self, request: Request) -> Decoded | DataError:
        preparation = self.framing.preparation
        pixels = np.empty((len(request.indices), *preparation.size, preparation.channels), np.uint8)
        try:
            for row, index in enumerate(request.indices.tolist()):
                pixels[row] = self._decode(index, request.seed(row))
        except DataError as error:
            return error
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        labels = self.split.labels[torch.from_numpy(request.indices)]
        return Decoded(images, labels, None if self.statistics is None else self.statistics(images))

    def _decode(self, index: int, seed: tuple[int, ...] | None) -> Pixels:
        framing = self.framing
        with decoding(self.split.images.name(index)), self.split.images.open(index) as image:
            size = upright_size(image)
            if framing.exact and size != framing.size:
                raise size_error(self.split, index, size, framing.size)
            if seed is None:
                return pixels_of(image, framing.preparation)
            with _seeded(seed):
                crop = self._random_crop(upright(image, framing.preparation.channels))
                return crop.permute(1, 2, 0).numpy()

    @cached_property
    def _random_crop(self) -> Callable[[Image.Image], Tensor]:
        create_transform = require("timm.data", self.split.name).create_transform
        crop: Callable[[Image.Image], Tensor] = create_transform(
            self.framing.size,
            is_training=True,
            hflip=0.5 if self.flip else 0.0,
            color_jitter=None,
            interpolation=self.framing.preparation.interpolation,
            normalize=False,
        )
        return crop


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
