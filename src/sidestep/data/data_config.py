"""Which images a run sees, and how they are prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from sidestep.data.augment_config import AugmentConfig
from sidestep.data.meant_classes import check_meant
from sidestep.data.preparation import Channels, Interpolation, Size, as_size
from sidestep.data.sources import SOURCES
from sidestep.errors import RecipeError
from sidestep.registry import own_settings

Storage = Literal["auto", "memory", "stream"]
Holdout = Literal["stratified", "random"]
Fill = Literal["black", "mirror"]
Flip = bool | Literal["alternating"]
PerChannel = tuple[float, ...]

DEFAULT_CROP_PADDING = 4
DEFAULT_MEAN: PerChannel = (0.4914, 0.4822, 0.4465)
DEFAULT_STD: PerChannel = (0.2023, 0.1994, 0.2010)
# By the number of channels; for one the same images in grey.
_DEFAULTS: dict[int, tuple[PerChannel, PerChannel]] = {
    1: ((0.4809,), (0.2392,)),
    3: (DEFAULT_MEAN, DEFAULT_STD),
}
_LEAST = {"split_seed": 0, "crop_padding": 0, "workers": 0, "views": 1, "limit": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Settings of an image set.

    Args:
        source: "digits" (scikit-learn's 8x8 digits: the first 1,500 for training, the last 297, by other
            writers, for testing); "hfds/<hub id or local folder>" in a layout that Hugging Face datasets
            reads; "torch/cifar10" and "torch/cifar100"; the path of a folder with train/<class>/ and test/,
            validation/ or val/; or a registered source. Relative paths start at the working directory.
        settings: of that source, an instance of its settings class; None is its defaults.
        image_size: height and width of what the network sees, one number for both or a list of two; None
            keeps the size of the set, which must then be the same for all images (digits: 32).
        crop_share: images are resized until they cover image_size / crop_share, and what is in the middle is
            kept; None is 224/256 where the training images vary in size, as photographs do, and else 1.
        interpolation: of resizing, always with antialiasing: "bilinear" or "bicubic".
        channels: of what the network sees: 3 for RGB, 1 for grey, which a network with one input channel is
            built for.
        val_fraction: share of the training split that is held out for validation, in [0, 1). 0 holds out
            nothing: validation is then the set's own validation split if another one is the test split,
            and else there is none.
        split_seed: seed of the images that are held out and of those that `limit` keeps.
        holdout: "stratified" holds out the same share of every class, and leaves every class at least one
            image to train on; "random" draws from all images, as runs did before there was a choice.
        mean: of each channel of pixels in [0, 1], subtracted; RDI-Net's values for CIFAR-10 and CIFAR-100, or
            what these are in grey.
        std: of each channel, divided by.
        per_image_standardization: subtract every image's own mean and divide by its own deviation, over all
            pixels and channels, as TensorFlow's function of this name does (ACT, SACT); mean and std have no
            meaning then.
        crop_padding: zero pixels around an image of which training sees a random crop; memory only.
        crop_fill: what lies around it: "black", or the image "mirror"ed at its edges; memory only.
        flip: whether training mirrors images: half of them by chance, or "alternating" those that were not
            in the epoch before (Jordan 2024); the latter in memory only.
        augment: what else is done to images in training.
        views: augmented views of every image in a batch, one after the other (CoDiNet); an epoch shows every
            image so many times.
        storage: "memory" keeps decoded images on the device and crops with padding; "stream" decodes anew in
            every epoch and crops at random sizes; "auto" is memory for images of one size up to 2 GiB.
        workers: processes that decode images; 0 decodes in the main process, as sets in memory that are
            arrays to begin with always do.
        classes: of the network, where the set has fewer or other ones: their number, "imagenet", or a text
            file with one name a line; None takes the set's. `class_indices` belongs to it.
        class_indices: which of `classes` every label of the set means, in the order of the set's classes.
        limit: number of training images to use, of those that are not held out, drawn as `holdout` says;
            None uses all.
    """

    source: str = "digits"
    settings: Any = None
    image_size: int | Size | None = None
    crop_share: float | None = None
    interpolation: Interpolation = "bilinear"
    channels: Channels = 3
    val_fraction: float = 0.1
    split_seed: int = 0
    holdout: Holdout = "stratified"
    mean: PerChannel = DEFAULT_MEAN
    std: PerChannel = DEFAULT_STD
    per_image_standardization: bool = False
    crop_padding: int = DEFAULT_CROP_PADDING
    crop_fill: Fill = "black"
    flip: Flip = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    views: int = 1
    storage: Storage = "auto"
    workers: int = 2
    classes: int | str | None = None
    class_indices: tuple[int, ...] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        source = SOURCES[self.source]
        object.__setattr__(self, "settings", own_settings(source, self.source, self.settings))
        if source.check is not None:
            source.check(self.settings, self.source)
        if isinstance(self.image_size, list):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.channels == 1:
            for name, default, grey in zip(("mean", "std"), _DEFAULTS[3], _DEFAULTS[1], strict=True):
                if tuple(getattr(self, name)) == default:
                    object.__setattr__(self, name, grey)
        if isinstance(self.class_indices, list):
            object.__setattr__(self, "class_indices", tuple(self.class_indices))
        check_meant(self.classes, self.class_indices)
        _check_choices(self)
        _check_pixels(self)
        _check_sizes(self)
        _check_numbers(self)
        if self.augment.mixes and self.views > 1:
            raise RecipeError(
                f"views must be 1 where images are mixed, since neighbours in a batch are, got {self.views}; "
                "drop augment.mixup and augment.cutmix"
            )
        if self.storage == "stream":
            check_stream(self)

    @property
    def size(self) -> Size | None:
        """Return (H, W) of what the network sees, or None where images keep their size."""
        return as_size(SOURCES[self.source].image_size if self.image_size is None else self.image_size)

    def at(self, source: str) -> DataConfig:
        """Return the same for images that lie elsewhere; settings of another kind of source start anew."""
        same = SOURCES[source].settings is SOURCES[self.source].settings
        return replace(self, source=source, settings=self.settings if same else None)


def check_stream(config: DataConfig) -> None:
    """Return if the settings suit a streamed set.

    Raises:
        RecipeError: if something was changed that a streamed set has no use for, or cannot do.
    """
    for name, default in (("crop_padding", DEFAULT_CROP_PADDING), ("crop_fill", "black")):
        if (value := getattr(config, name)) != default:
            raise RecipeError(
                f"{name} has no effect on a streamed set, which is cropped at random sizes, got "
                f"{value}; drop it, or set storage: memory"
            )
    if config.flip == "alternating":
        raise RecipeError(
            "flip must be true or false for a streamed set, got 'alternating'; change it, or set "
            "storage: memory"
        )


def _check_numbers(config: DataConfig) -> None:
    if not 0.0 <= config.val_fraction < 1.0:
        raise RecipeError(f"val_fraction must be in [0, 1), got {config.val_fraction}; 0 holds out nothing")
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise RecipeError(f"{name} must be at least {least}, got {value}")


def _check_choices(config: DataConfig) -> None:
    for name, choices in (
        ("storage", Storage),
        ("holdout", Holdout),
        ("interpolation", Interpolation),
        ("channels", Channels),
        ("crop_fill", Fill),
    ):
        value, known = getattr(config, name), get_args(choices)
        if value not in known:
            raise RecipeError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def _check_sizes(config: DataConfig) -> None:
    if config.image_size is not None and min(config.size or ()) < 1:
        raise RecipeError(f"image_size must be at least 1, got {config.image_size}")
    if config.crop_share is None:
        return
    if not 0.0 < config.crop_share <= 1.0:
        raise RecipeError(f"crop_share must be in (0, 1], got {config.crop_share}; 1 keeps all")
    if config.size is None:
        raise RecipeError(
            f"crop_share has no effect on images that keep their size, got {config.crop_share}; "
            "set image_size, or drop it"
        )


def _check_pixels(config: DataConfig) -> None:
    count = "one number" if config.channels == 1 else "three numbers"
    for name, inside, rule in (
        ("mean", lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
        ("std", lambda value: 0.0 < value < math.inf, "above 0"),
    ):
        values = getattr(config, name)
        if len(values) != config.channels or not all(map(inside, values)):
            raise RecipeError(f"{name} must be {count} {rule}, one for each channel, got {values}")
    if config.per_image_standardization:
        _check_per_image(config)


def _check_per_image(config: DataConfig) -> None:
    for name, default in zip(("mean", "std"), _DEFAULTS[config.channels], strict=True):
        value = getattr(config, name)
        if tuple(value) != default:
            raise RecipeError(
                f"{name} has no effect beside per_image_standardization, which takes every image's own, got "
                f"{value}; drop one of them"
            )


# Keys of a recipe's `data:` that all sources share.
SHARED_KEYS = tuple(field.name for field in fields(DataConfig) if field.name not in ("source", "settings"))
