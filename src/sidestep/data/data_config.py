"""Which images a run sees, and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from sidestep.data.sources import SOURCES
from sidestep.errors import RecipeError
from sidestep.registry import own_settings

Storage = Literal["auto", "memory", "stream"]
Triple = tuple[float, float, float]

DEFAULT_CROP_PADDING = 4
DEFAULT_MEAN: Triple = (0.4914, 0.4822, 0.4465)
DEFAULT_STD: Triple = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Settings of an image set.

    Args:
        source: "digits" (scikit-learn's 8x8 digits: the first 1,500 for training, the last 297, by other
            writers, for testing); "hfds/<hub id or local folder>" in a layout that Hugging Face datasets
            reads; "torch/cifar10" and "torch/cifar100"; the path of a folder with train/<class>/ and test/,
            validation/ or val/; or a registered source. Relative paths start at the working directory.
        settings: of that source, an instance of its settings class; None is its defaults.
        image_size: height and width of what the network sees; None keeps the size of the set, which must
            then be the same for all images (digits: 32).
        val_fraction: share of the training split that is held out for validation, in [0, 1). 0 holds out
            nothing: validation is then the set's own validation split if another one is the test split,
            and else there is none.
        split_seed: seed of the images that are held out and of those that `limit` keeps.
        mean: of each channel of pixels in [0, 1], subtracted; RDI-Net's values for CIFAR-10 and CIFAR-100.
        std: of each channel, divided by.
        per_image_standardization: subtract every image's own mean and divide by its own deviation, over all
            pixels and channels, as TensorFlow's function of this name does (ACT, SACT); mean and std have no
            meaning then.
        crop_padding: zero pixels around an image of which training sees a random crop; memory only.
        flip: whether training mirrors every other image.
        views: augmented views of every image in a batch, one after the other (CoDiNet); an epoch shows every
            image so many times.
        storage: "memory" keeps decoded images on the device and crops with padding; "stream" decodes anew in
            every epoch and crops at random sizes; "auto" is memory for images of one size up to 2 GiB.
        workers: processes that decode images; 0 decodes in the main process.
        limit: number of training images to use, of those that are not held out; None uses all.
    """

    source: str = "digits"
    settings: Any = None
    image_size: int | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    mean: Triple = DEFAULT_MEAN
    std: Triple = DEFAULT_STD
    per_image_standardization: bool = False
    crop_padding: int = DEFAULT_CROP_PADDING
    flip: bool = True
    views: int = 1
    storage: Storage = "auto"
    workers: int = 2
    limit: int | None = None

    def __post_init__(self) -> None:
        source = SOURCES[self.source]
        object.__setattr__(self, "settings", own_settings(source, self.source, self.settings))
        if source.check is not None:
            source.check(self.settings, self.source)
        _check_pixels(self.mean, self.std)
        if self.per_image_standardization:
            _check_per_image(self.mean, self.std)
        if not 0.0 <= self.val_fraction < 1.0:
            raise RecipeError(f"val_fraction must be in [0, 1), got {self.val_fraction}; 0 holds out nothing")
        if self.storage not in get_args(Storage):
            raise RecipeError(f"storage must be one of {', '.join(get_args(Storage))}, got {self.storage!r}")
        for name, least in (
            ("split_seed", 0),
            ("crop_padding", 0),
            ("workers", 0),
            ("views", 1),
            ("image_size", 1),
            ("limit", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{name} must be at least {least}, got {value}")
        if self.storage == "stream":
            check_stream(self)

    def at(self, source: str) -> DataConfig:
        """Return the same for images that lie elsewhere; settings of another kind of source start anew."""
        same = SOURCES[source].settings is SOURCES[self.source].settings
        return replace(self, source=source, settings=self.settings if same else None)


def check_stream(config: DataConfig) -> None:
    """Return if the settings suit a streamed set.

    Raises:
        RecipeError: if `crop_padding` was changed, which a streamed set has no use for.
    """
    if config.crop_padding != DEFAULT_CROP_PADDING:
        raise RecipeError(
            f"crop_padding has no effect on a streamed set, which is cropped at random sizes, got "
            f"{config.crop_padding}; drop it, or set storage: memory"
        )


def _check_pixels(mean: Triple, std: Triple) -> None:
    if len(mean) != 3 or not all(0.0 <= value <= 1.0 for value in mean):
        raise RecipeError(f"mean must be three numbers in [0, 1], one for each channel, got {mean}")
    if len(std) != 3 or not all(value > 0.0 for value in std):
        raise RecipeError(f"std must be three numbers above 0, one for each channel, got {std}")


def _check_per_image(mean: Triple, std: Triple) -> None:
    for name, value, default in (("mean", mean, DEFAULT_MEAN), ("std", std, DEFAULT_STD)):
        if tuple(value) != default:
            raise RecipeError(
                f"{name} has no effect beside per_image_standardization, which takes every image's own, got "
                f"{value}; drop one of them"
            )


# Keys of a recipe's `data:` that all sources share.
SHARED_KEYS = tuple(field.name for field in fields(DataConfig) if field.name not in ("source", "settings"))
