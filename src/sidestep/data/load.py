"""From a DataConfig to image sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from sidestep.data.data_config import DataConfig
from sidestep.data.decode import Decoded, Decoder, Framing, Request, choose_framing, decode_batches
from sidestep.data.histogram import Statistics
from sidestep.data.holdout import hold_out
from sidestep.data.image_set import ImageSet, Indices
from sidestep.data.meant_classes import with_meant_classes
from sidestep.data.memory_set import MemorySet
from sidestep.data.preparation import Preparation, Size
from sidestep.data.shared_images import Pixels, content_once, decoded_once, opened_once
from sidestep.data.sources import SOURCES
from sidestep.data.split import ArrayImages, Role, Split, class_difference
from sidestep.data.stream_set import StreamSet
from sidestep.errors import DataError, RecipeError

_MEMORY_LIMIT = 2 * 1024**3
_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """An image set, ready to train and to evaluate on.

    Attributes:
        train: images to train on, or None where this split was not asked for.
        val: images held out of the training split, or None also where there are none.
        test: images to test on, or None.
        num_classes: number of classes.
        class_names: name of each class.
        preparation: what is done to every image, training's random crops aside.
        drawn_from: number, labels and content of the images that training and held-out ones were drawn from,
            in short; None where no such images were asked for.
        test_split: what `test` was made of, not decoded.
    """

    train: ImageSet | None
    val: ImageSet | None
    test: ImageSet | None
    num_classes: int
    class_names: tuple[str, ...]
    preparation: Preparation
    drawn_from: str | None
    test_split: Split | None = None

    @property
    def input_size(self) -> Size:
        """Return (height, width) of the images."""
        return self.preparation.size


@dataclass(frozen=True, slots=True)
class _Part:
    """Images of an opened split that make one set."""

    split: Split
    framing: Framing
    indices: Indices


def load_data(
    config: DataConfig,
    *,
    statistics: Statistics | None = None,
    preparation: Preparation | None = None,
    splits: Sequence[Role] = ("train", "val", "test"),
    device: torch.device | str = "cpu",
) -> Data:
    """Return the image sets of a config; splits that are not asked for are neither decoded nor kept.

    >>> data = load_data(DataConfig(source="digits", workers=0), splits=("train", "val"))
    >>> len(data.train), len(data.val), data.test, data.input_size
    (1350, 150, None, (32, 32))
    >>> next(data.train.train_batches(epoch=0, batch_size=50, seed=0)).images.shape
    torch.Size([50, 3, 32, 32])

    Args:
        config: settings.
        statistics: mapping that fills `Batch.statistics`, such as `color_histogram`; None leaves it empty.
        preparation: how a run's images were prepared, for more of that kind; None follows the settings, and
            what these leave open the images of the first split decide.
        splits: which of train, val and test to load.
        device: where the batches come up.

    Raises:
        DataError: if images are missing, broken or of the wrong size, or labels outside the classes.
        RecipeError: if a setting has no effect on how the set is stored.
    """
    unknown = [name for name in splits if name not in get_args(Role)]
    if unknown or not splits:
        raise RecipeError(f"splits must be some of {', '.join(get_args(Role))}, got {list(splits)}")
    parts = _open_parts(config, splits, preparation)
    shown = next(iter(parts.values()))
    for part in parts.values():
        _check_alike(shown, part)
    if statistics is not None:
        # What it refuses is refused before images are decoded or a run begins.
        statistics(torch.zeros(1, config.channels, *shown.framing.size, dtype=torch.uint8))
    sets = {role: _build(part, config, statistics, device) for role, part in parts.items()}
    return Data(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        num_classes=len(shown.split.class_names),
        class_names=shown.split.class_names,
        preparation=shown.framing.preparation,
        drawn_from=_drawn_from(parts, config),
        test_split=parts["test"].split if "test" in parts else None,
    )


def open_split(config: DataConfig, role: Role) -> Split | None:
    """Return the split of the source that plays a role, or None where there is no validation split.

    Its labels are indices of the network's classes.
    """
    source = SOURCES[config.source]
    split = opened_once(config, role, lambda: source.open(config.settings, config.source, role))
    return None if split is None else with_meant_classes(split, config.classes, config.class_indices)


def _open_parts(
    config: DataConfig, splits: Sequence[Role], preparation: Preparation | None
) -> dict[Role, _Part]:
    parts: dict[Role, _Part] = {}
    holds_out = config.val_fraction > 0
    needs_train = "train" in splits or ("val" in splits and holds_out)
    if needs_train and (split := open_split(config, "train")) is not None:
        framing = choose_framing(split, config, preparation)
        preparation = framing.preparation
        val, train = hold_out(split.labels.numpy(), config)
        if "train" in splits:
            parts["train"] = _Part(split, framing, train)
        if "val" in splits and holds_out:
            parts["val"] = _Part(split, framing, val)
    own: list[Role] = ["test"] if "test" in splits else []
    own += ["val"] if "val" in splits and not holds_out else []
    for role in own:
        if (split := open_split(config, role)) is not None:
            framing = choose_framing(split, config, preparation)
            parts[role] = _Part(split, framing, np.arange(len(split.images)))
    if not parts:
        raise DataError(
            f"source {config.source!r} must have a validation split where val_fraction is 0, got none; "
            f"set val_fraction: 0.1"
        )
    return parts


def _drawn_from(parts: Mapping[Role, _Part], config: DataConfig) -> str | None:
    part = parts.get("train") or (parts.get("val") if config.val_fraction > 0 else None)
    if part is None:
        return None
    labels = hashlib.sha256(part.split.labels.numpy().astype("<i8").tobytes()).hexdigest()[:8]
    return f"{len(part.split.images)} images, labels {labels}, content {content_once(part.split, config)}"


def _check_alike(one: _Part, other: _Part) -> None:
    if one.framing.size != other.framing.size:
        sizes = [f"{part.framing.size[0]}x{part.framing.size[1]}" for part in (other, one)]
        raise DataError(
            f"image_size must be set where splits differ in size: those of {other.split.name} are {sizes[0]}"
            f", those of {one.split.name} {sizes[1]}"
        )
    difference = class_difference(other.split.class_names, one.split.class_names)
    if difference is not None:
        raise DataError(
            f"the classes of {other.split.name} must be those of {one.split.name}, by name and order, but "
            f"{difference}; rename or order them alike"
        )


def _build(
    part: _Part, config: DataConfig, statistics: Statistics | None, device: torch.device | str
) -> ImageSet:
    if _storage(part, config) == "stream":
        return StreamSet(
            part.split, part.indices, config, framing=part.framing, statistics=statistics, device=device
        )
    images, labels = decoded_once(
        part.split, part.framing, part.indices, config, lambda: _decoded(part, config)
    )
    return MemorySet(images, labels, config, statistics=statistics, device=device)


def _decoded(part: _Part, config: DataConfig) -> Pixels:
    shape = (len(part.indices), config.channels, *part.framing.size)
    images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    labels = torch.empty(len(part.indices), dtype=torch.int64)
    for step, decoded in enumerate(decoded_chunks(part.split, part.framing, part.indices, config)):
        rows = slice(step * _CHUNK, (step + 1) * _CHUNK)
        images[rows], labels[rows] = decoded.images, decoded.labels
    return images, labels


def decoded_chunks(split: Split, framing: Framing, indices: Indices, config: DataConfig) -> Iterator[Decoded]:
    """Return some images of a split in their order, a few at a time, not augmented; others are not looked at.

    Args:
        split: whose images they are.
        framing: how they are prepared.
        indices: which.
        config: says how many processes decode.

    Raises:
        DataError: at the first image that cannot be decoded.
    """
    decoder = Decoder(split, framing, flip=False)
    chunks = [Request(indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    # What is an array already is taken sooner than a process is started.
    workers = 0 if isinstance(split.images, ArrayImages) else config.workers
    return decode_batches(decoder, chunks, workers=workers)


def _storage(part: _Part, config: DataConfig) -> str:
    if config.storage != "auto":
        return config.storage
    num_bytes = len(part.split.images) * config.channels * part.framing.size[0] * part.framing.size[1]
    if part.framing.one_size and num_bytes <= _MEMORY_LIMIT:
        return "memory"
    return "stream"
