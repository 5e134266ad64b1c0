"""Backbones by name, and the static weights they can start from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Literal

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.backbones.imagenet_resnet import DEPTHS, ImageNetResNet, ImageNetResNetConfig
from sidestep.backbones.preact_resnet import PREACT_DEPTHS, Images, PreactResNet, PreactResNetConfig
from sidestep.errors import RecipeError
from sidestep.layers.residual import Mix, Skip
from sidestep.layers.shortcut import Shortcut
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.msdnet import MsdNet, MsdNetConfig
from sidestep.networks.ranet import RaNet, RaNetConfig

_CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)")
_IMAGENET_RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}
_TIMM = "timm/"
# Networks of exits alone; each has a section of its own name.
EXIT_NETWORKS = ("ranet", "msdnet")
# Settings of our own networks and of timm's, that have no effect on the other kind.
_BLOCKS = ("shortcut", "mix", "options", "se_ratio", "skip")
_OURS, _TIMMS = (*_BLOCKS, "preact"), ("pretrained", "units")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachConfig:
    """Early exits on a network that has none of its own, see `attach_exits`.

    Args:
        at: names of units, or of modules around several ("layer2"), behind which an exit is; none by default.
        width: channels of the convolution of every exit.
    """

    at: list[str] = field(default_factory=list)
    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise RecipeError(f"width must be at least 1, got {self.width}; 64 is usual")
        if self.width != 64 and not self.at:
            raise RecipeError(f"width has no effect without exits, got {self.width}; set at, or drop it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Settings of the network that is made dynamic.

    Args:
        name: "cifar_resnet20", 32, 38, 44, 56, 74, 110, 152: a ResNet for 32x32 images with 6n + 2 layers;
            "resnet18", 34, 50, 101, 152: a ResNet for photographs of 224x224; or "timm/" and the name of a
            ResNet, ConvNeXt or ViT in timm, which shortcut, mix, options, se_ratio and skip do not affect; or
            "ranet" or "msdnet", which the section of that name describes.
        shortcut: where shapes change: A (zero padding), B (1x1 convolution), pool_end (BlockDrop) or
            pool_both (ACT), see `make_shortcut`; by default A for CIFAR ResNets and B for the others, which
            know no other.
        mix: how units blend soft weights: "output" (RDI-Net eq. 9) or "branch" (ConvNet-AIG).
        options: 2 (skip, execute), or 3 with the first convolution alone between them, as in RDI-Net's
            released code (CIFAR ResNets).
        se_ratio: r of squeeze-and-excitation at the end of every branch (16 makes SE-ResNets), or None.
        skip: what a skipped unit returns where shapes change: "relu" (its shortcut behind a ReLU), "linear"
            (its shortcut B as it is, SkipNet) or "own" (a projection beside its shortcut, CoDiNet).
        preact: blocks with BatchNorm and activation before every convolution, as in ACT and SACT (CIFAR
            ResNets, and resnet50, 101, 152); shortcut, mix, options, se_ratio and skip have no meaning then.
        init: file of static weights to start from (safetensors or torch state dict); also the teacher.
        pretrained: let timm download the weights to start from.
        units: "blocks", or "sublayers" for attention and MLP of a ViT block as two units (timm).
        exits: early exits on a network that has none of its own.
        ranet: architecture of a RANet.
        msdnet: architecture of an MSDNet.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    name: str = "cifar_resnet32"
    shortcut: Shortcut | None = None
    mix: Mix = "output"
    options: Literal[2, 3] = 2
    se_ratio: int | None = None
    skip: Skip = "relu"
    preact: bool = False
    init: str | None = None
    pretrained: bool = False
    units: Literal["blocks", "sublayers"] = "blocks"
    exits: AttachConfig = field(default_factory=AttachConfig)
    ranet: RaNetConfig = field(default_factory=RaNetConfig)
    msdnet: MsdNetConfig = field(default_factory=MsdNetConfig)

    def __post_init__(self) -> None:
        others = [name for name in EXIT_NETWORKS if name != self.name]
        _refuse(self, others, repr(self.name))
        if self.name in EXIT_NETWORKS:
            _refuse(self, (*_OURS, *_TIMMS, "exits"), repr(self.name))
            _check_num_classes(getattr(self, self.name))
            return
        is_timm = self.name.startswith(_TIMM)
        _refuse(self, _OURS if is_timm else _TIMMS, repr(self.name))
        if is_timm:
            _check_timm(self)
        else:
            _network_config(self, num_classes=10)


def build_backbone(
    config: ModelConfig, num_classes: int, input_size: tuple[int, int] | None = None
) -> Backbone:
    """Return a freshly initialised backbone, or one with the weights that `config.pretrained` downloads.

    Args:
        config: which; `config.init` is not read.
        num_classes: classes of the head.
        input_size: height and width of the images; only networks that are built for one size ask for it.

    Raises:
        RecipeError: for a network without units, or a failed download.
    """
    if config.name.startswith(_TIMM):
        # Imported where it is needed, since timm takes seconds.
        from sidestep.backbones.timm_models import build_timm

        name = config.name.removeprefix(_TIMM)
        return build_timm(name, num_classes, input_size, pretrained=config.pretrained, units=config.units)
    network = _network_config(config, num_classes)
    if isinstance(network, PreactResNetConfig):
        return PreactResNet(network)
    return CifarResNet(network) if isinstance(network, CifarResNetConfig) else ImageNetResNet(network)


def build_exit_network(config: ModelConfig, num_classes: int) -> ExitNetwork:
    """Return a freshly initialised RANet or MSDNet.

    Args:
        config: which; its name is one of `EXIT_NETWORKS`.
        num_classes: classes of every exit.
    """
    if config.name == "ranet":
        return RaNet(replace(config.ranet, num_classes=num_classes))
    return MsdNet(replace(config.msdnet, num_classes=num_classes))


def _check_num_classes(section: RaNetConfig | MsdNetConfig) -> None:
    if section.num_classes != type(section)().num_classes:
        raise RecipeError(
            f"num_classes has no effect, the data has its own number, got {section.num_classes}; drop it"
        )


def _refuse(config: ModelConfig, settings: Sequence[str], network: str) -> None:
    """Raise for settings that were changed and have no effect on a kind of network."""
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name in settings and value != default:
            shown = "settings of its own" if is_dataclass(value) else repr(value)
            raise RecipeError(f"{item.name} has no effect on {network}, got {shown}; drop it")


def _check_timm(config: ModelConfig) -> None:
    from sidestep.backbones.timm_models import check_timm_name

    if config.pretrained and config.init is not None:
        raise RecipeError(f"pretrained has no effect beside init {config.init!r}, got true; drop one of them")
    check_timm_name(config.name.removeprefix(_TIMM), pretrained=config.pretrained)


def _network_config(
    config: ModelConfig, num_classes: int
) -> CifarResNetConfig | PreactResNetConfig | ImageNetResNetConfig:
    match = _CIFAR_RESNET.fullmatch(config.name)
    if not match and config.name not in _IMAGENET_RESNETS:
        raise RecipeError(
            f"name must be cifar_resnet<6n+2>, one of {', '.join(_IMAGENET_RESNETS)}, or timm/<name>, got "
            f"{config.name!r}; for example cifar_resnet32"
        )
    depth = int(match[1]) if match else _IMAGENET_RESNETS[config.name]
    if config.preact:
        return _preact_config(config, num_classes, depth, on_cifar=bool(match))
    if match:
        return CifarResNetConfig(
            depth=depth,
            num_classes=num_classes,
            shortcut=config.shortcut or "A",
            mix=config.mix,
            options=config.options,
            se_ratio=config.se_ratio,
            skip=config.skip,
        )
    for setting, value, only in (("shortcut", config.shortcut or "B", "B"), ("options", config.options, 2)):
        if value != only:
            raise RecipeError(
                f"{setting} must be {only} for {config.name}, got {value!r}; "
                "leave it out, only cifar_resnet<6n+2> knows others"
            )
    return ImageNetResNetConfig(
        depth=depth,
        num_classes=num_classes,
        mix=config.mix,
        se_ratio=config.se_ratio,
        skip=config.skip,
    )


def _preact_config(
    config: ModelConfig, num_classes: int, depth: int, *, on_cifar: bool
) -> PreactResNetConfig:
    _refuse(config, _BLOCKS, "a network with preact")
    if not on_cifar and depth not in PREACT_DEPTHS:
        known = ", ".join(f"resnet{known}" for known in PREACT_DEPTHS)
        raise RecipeError(
            f"preact must be false for {config.name}, whose blocks are no bottlenecks, got true; drop it, or "
            f"choose one of {known}"
        )
    images: Images = "cifar" if on_cifar else "imagenet"
    return PreactResNetConfig(depth=depth, num_classes=num_classes, images=images)
