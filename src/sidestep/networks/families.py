"""The networks that come with the package: settings of every family, and how it is built from a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.backbones.imagenet_resnet import DEPTHS, ImageNetResNet, ImageNetResNetConfig
from sidestep.backbones.preact_resnet import PREACT_DEPTHS, PreactResNet, PreactResNetConfig
from sidestep.errors import RecipeError
from sidestep.layers.norm import CIFAR_INNER_LEAK
from sidestep.layers.residual import Mix, Skip
from sidestep.layers.shortcut import Shortcut
from sidestep.networks.msdnet import MsdNet, MsdNetConfig, MsdNetSettings
from sidestep.networks.ranet import RaNet, RaNetConfig, RaNetSettings

if TYPE_CHECKING:
    from sidestep.networks.models import ModelConfig

Size = tuple[int, int]

_CIFAR, _CIFAR_PREACT, _PREACT = "cifar_resnet", "cifar_preact_resnet", "preact_resnet"
_TIMM, _TORCHVISION = "timm/", "torchvision/"


@dataclass(frozen=True, slots=True, kw_only=True)
class CifarResNetSettings:
    """Settings of "cifar_resnet20", 32, 38, 44, 56, 74, 110, 152: a ResNet for 32x32 images, 6n + 2 layers.

    Args:
        shortcut: where shapes change: A (zero padding), B (1x1 convolution), pool_end (BlockDrop) or
            pool_both (ACT), see `make_shortcut`.
        mix: how units blend soft weights: "output" (RDI-Net eq. 9) or "branch" (ConvNet-AIG).
        options: 2 (skip, execute), or 3 with the first convolution alone between them, as in RDI-Net's
            released code.
        se_ratio: r of squeeze-and-excitation at the end of every branch (16 makes SE-ResNets), or None.
        skip: what a skipped unit returns where shapes change: "relu" (its shortcut behind a ReLU), "linear"
            (its shortcut B as it is, SkipNet) or "own" (a projection beside its shortcut, CoDiNet).
    """

    shortcut: Shortcut = "A"
    mix: Mix = "output"
    options: Literal[2, 3] = 2
    se_ratio: int | None = None
    skip: Skip = "relu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNetResNetSettings:
    """Settings of "resnet10", 18, 34, 50, 101, 152: a ResNet for photographs of 224x224.

    Args:
        mix: how units blend soft weights: "output" (RDI-Net eq. 9) or "branch" (ConvNet-AIG).
        se_ratio: r of squeeze-and-excitation at the end of every branch (16 makes SE-ResNets), or None.
        skip: what a skipped unit returns where shapes change: "relu" (its shortcut behind a ReLU), "linear"
            (its shortcut as it is, SkipNet) or "own" (a projection beside its shortcut, CoDiNet).
    """

    mix: Mix = "output"
    se_ratio: int | None = None
    skip: Skip = "relu"


@dataclass(frozen=True, slots=True, kw_only=True)
class CifarPreactResNetSettings:
    """Settings of "cifar_preact_resnet32" and others of 6n + 2 layers, pre-activation ResNets as in ACT.

    Args:
        inner_leak: slope below zero between the two convolutions of a block; 0.01 is that of the released
            code, which applies its leaky ReLU of 0.1 twice there.
    """

    inner_leak: float = CIFAR_INNER_LEAK


@dataclass(frozen=True, slots=True, kw_only=True)
class PreactResNetSettings:
    """Pre-activation ResNets for photographs, as in SACT, have no settings: their name says everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmSettings:
    """Settings of "timm/" and the name of a network with residual blocks in timm.

    Args:
        units: "blocks", "sublayers" for attention and MLP of a ViT block as two units, or a list of modules
            by name ([layer1.0, layer1.1]).
    """

    units: Literal["blocks", "sublayers"] | list[str] = "blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionSettings:
    """Settings of "torchvision/" and the name of a network with residual blocks in torchvision.

    Args:
        units: "blocks", or a list of modules by name ([layer1.0, layer1.1]).
    """

    units: Literal["blocks"] | list[str] = "blocks"


def build_cifar(
    settings: CifarResNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return CifarResNet(replace(_cifar_config(settings, name, num_classes), in_channels=channels))


def check_cifar(config: ModelConfig) -> None:
    _cifar_config(config.settings, config.name, num_classes=10)


def _cifar_config(settings: CifarResNetSettings, name: str, num_classes: int) -> CifarResNetConfig:
    return CifarResNetConfig(
        depth=_depth(name, _CIFAR),
        num_classes=num_classes,
        shortcut=settings.shortcut,
        mix=settings.mix,
        options=settings.options,
        se_ratio=settings.se_ratio,
        skip=settings.skip,
    )


def build_imagenet(
    settings: ImageNetResNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return ImageNetResNet(replace(_imagenet_config(settings, name, num_classes), in_channels=channels))


def check_imagenet(config: ModelConfig) -> None:
    _imagenet_config(config.settings, config.name, num_classes=1000)


def _imagenet_config(settings: ImageNetResNetSettings, name: str, num_classes: int) -> ImageNetResNetConfig:
    return ImageNetResNetConfig(
        depth=DEPTH_OF[name],
        num_classes=num_classes,
        mix=settings.mix,
        se_ratio=settings.se_ratio,
        skip=settings.skip,
    )


def build_cifar_preact(
    settings: CifarPreactResNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return PreactResNet(replace(_cifar_preact_config(settings, name, num_classes), in_channels=channels))


def check_cifar_preact(config: ModelConfig) -> None:
    _cifar_preact_config(config.settings, config.name, num_classes=10)


def _cifar_preact_config(
    settings: CifarPreactResNetSettings, name: str, num_classes: int
) -> PreactResNetConfig:
    depth = _depth(name, _CIFAR_PREACT)
    return PreactResNetConfig(depth=depth, num_classes=num_classes, inner_leak=settings.inner_leak)


def build_preact(
    settings: PreactResNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    config = PreactResNetConfig(
        depth=PREACT_DEPTH_OF[name], num_classes=num_classes, images="imagenet", in_channels=channels
    )
    return PreactResNet(config)


def build_timm_model(
    settings: TimmSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return _build_timm(settings, name, num_classes, size, channels, pretrained=False)


def download_timm_model(
    settings: TimmSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return _build_timm(settings, name, num_classes, size, channels, pretrained=True)


def _build_timm(
    settings: TimmSettings, name: str, num_classes: int, size: Size | None, channels: int, *, pretrained: bool
) -> Backbone:
    # Imported where it is needed, since timm takes seconds.
    from sidestep.backbones.timm_models import build_timm

    return build_timm(
        name.removeprefix(_TIMM),
        num_classes,
        size,
        in_channels=channels,
        pretrained=pretrained,
        units=settings.units,
    )


def check_timm(config: ModelConfig) -> None:
    from sidestep.backbones.timm_models import check_timm_name

    check_timm_name(config.name.removeprefix(_TIMM), pretrained=config.pretrained)


def build_torchvision_model(
    settings: TorchvisionSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return _build_torchvision(settings, name, num_classes, size, channels, pretrained=False)


def download_torchvision_model(
    settings: TorchvisionSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> Backbone:
    return _build_torchvision(settings, name, num_classes, size, channels, pretrained=True)


def _build_torchvision(
    settings: TorchvisionSettings,
    name: str,
    num_classes: int,
    size: Size | None,
    channels: int,
    *,
    pretrained: bool,
) -> Backbone:
    from sidestep.backbones.torchvision_models import build_torchvision

    return build_torchvision(
        name.removeprefix(_TORCHVISION),
        num_classes,
        size,
        in_channels=channels,
        pretrained=pretrained,
        units=settings.units,
    )


def check_torchvision(config: ModelConfig) -> None:
    from sidestep.backbones.torchvision_models import check_torchvision_name

    check_torchvision_name(config.name.removeprefix(_TORCHVISION))


def build_ranet(
    settings: RaNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> RaNet:
    return RaNet(RaNetConfig(**asdict(settings), num_classes=num_classes, in_channels=channels))


def build_msdnet(
    settings: MsdNetSettings, name: str, num_classes: int, size: Size | None, *, channels: int = 3
) -> MsdNet:
    return MsdNet(MsdNetConfig(**asdict(settings), num_classes=num_classes, in_channels=channels))


def _depth(name: str, family: str) -> int:
    digits = name.removeprefix(family)
    if not digits.isdecimal():
        raise RecipeError(
            f"name must be {family} and a number of 6n + 2 layers, got {name!r}; for example {family}32"
        )
    return int(digits)


DEPTH_OF = {f"resnet{depth}": depth for depth in DEPTHS}
PREACT_DEPTH_OF = {f"{_PREACT}{depth}": depth for depth in PREACT_DEPTHS}
