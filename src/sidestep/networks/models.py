"""Models by name: what recipes can make dynamic, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.networks import families
from sidestep.networks.families import Size
from sidestep.networks.msdnet import MsdNetSettings
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.ranet import RaNetSettings
from sidestep.registry import Registry, own_settings

Settings = TypeVar("Settings")
Built = TypeVar("Built", Backbone, DynamicNetwork)


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
class Model(Generic[Settings, Built]):
    """A network, or a family of them, that recipes can name.

    Attributes:
        name: as recipes say it; "timm/<name>" stands for all names that begin like it.
        summary: one line for lists.
        settings: frozen dataclass of its options, the keys of a recipe's `model:` besides the common ones.
        build: (settings, name, num_classes, (height, width) of the images or None) -> the freshly initialised
            network, drawn from torch's generator. A `Backbone` is made dynamic by the recipe's method; a
            `DynamicNetwork` decides by itself.
        download: the same with trained weights that it downloads, or None where there are none.
        any_channels: whether `build` and `download` take a keyword `channels`, those of the images, and so
            grey ones too; other models are for images of three channels.
        check: raises RecipeError for a name or settings of which no network can be built.
        dynamic: whether `build` returns a `DynamicNetwork`. It belongs to the method of the same name, and
            knows none of the common keys.
    """

    name: str
    summary: str
    settings: type[Settings]
    build: Callable[..., Built]
    download: Callable[..., Built] | None = None
    any_channels: bool = False
    check: Callable[[ModelConfig], None] | None = None
    dynamic: bool = False

    @property
    def common(self) -> tuple[str, ...]:
        """Return the keys of `model` in a recipe that it shares with other models."""
        if self.dynamic:
            return ()
        return tuple(key for key in _COMMON if key != "pretrained" or self.download is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network that is made dynamic.

    Args:
        name: "cifar_resnet20", 32, 38, 44, 56, 74, 110, 152: a ResNet for 32x32 images with 6n + 2 layers;
            "resnet10", 18, 34, 50, 101, 152: a ResNet for photographs of 224x224; "cifar_preact_resnet32"
            and "preact_resnet50", 101, 152: the same with activations before every convolution, as in ACT
            and SACT; "timm/" and the name of a network of timm with residual blocks; "torchvision/" and that
            of one of torchvision; "ranet", "msdnet"; or a registered model.
        settings: of that model, an instance of its settings class; None is its defaults.
        init: file of static weights to start from (safetensors or torch state dict); also the teacher.
        init_head: "load" takes the classifier from that file too, "new" starts it anew, for other classes.
        pretrained: start from weights that the model downloads.
        exits: early exits on a network that has none of its own.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    name: str = "cifar_resnet32"
    settings: Any = None
    init: str | None = None
    init_head: Literal["load", "new"] = "load"
    pretrained: bool = False
    exits: AttachConfig = field(default_factory=AttachConfig)

    def __post_init__(self) -> None:
        model = MODELS[self.name]
        object.__setattr__(self, "settings", own_settings(model, self.name, self.settings))
        defaults = {"init": None, "init_head": "load", "pretrained": False, "exits": AttachConfig()}
        for key, default in defaults.items():
            if key not in model.common and getattr(self, key) != default:
                raise RecipeError(f"{key} has no effect on {self.name!r}; drop it")
        if self.pretrained and self.init is not None:
            raise RecipeError(
                f"pretrained has no effect beside init {self.init!r}, got true; drop one of them"
            )
        if self.init_head == "new" and self.init is None:
            raise RecipeError("init_head has no effect without init, got 'new'; set init, or drop it")
        if model.check is not None:
            model.check(self)


_COMMON = ("init", "init_head", "pretrained", "exits")

_CIFAR_RESNET = Model(
    name="cifar_resnet<6n+2>",
    summary="ResNet for 32x32 images (He et al. 2016)",
    settings=families.CifarResNetSettings,
    build=families.build_cifar,
    any_channels=True,
    check=families.check_cifar,
)
_CIFAR_PREACT_RESNET = Model(
    name="cifar_preact_resnet<6n+2>",
    summary="pre-activation ResNet for 32x32 images (He et al. 2016b), as in ACT and SACT",
    settings=families.CifarPreactResNetSettings,
    build=families.build_cifar_preact,
    any_channels=True,
    check=families.check_cifar_preact,
)
_IMAGENET_RESNETS = [
    Model(
        name=name,
        summary="ResNet for photographs (He et al. 2016)",
        settings=families.ImageNetResNetSettings,
        build=families.build_imagenet,
        any_channels=True,
        check=families.check_imagenet,
    )
    for name in families.DEPTH_OF
]
_PREACT_RESNETS = [
    Model(
        name=name,
        summary="pre-activation ResNet for photographs (He et al. 2016b), as in SACT",
        settings=families.PreactResNetSettings,
        build=families.build_preact,
        any_channels=True,
    )
    for name in families.PREACT_DEPTH_OF
]
_TIMM = Model(
    name="timm/<name>",
    summary="network of timm with residual blocks",
    settings=families.TimmSettings,
    build=families.build_timm_model,
    any_channels=True,
    download=families.download_timm_model,
    check=families.check_timm,
)
_TORCHVISION = Model(
    name="torchvision/<name>",
    summary="network of torchvision with residual blocks",
    settings=families.TorchvisionSettings,
    build=families.build_torchvision_model,
    any_channels=True,
    download=families.download_torchvision_model,
    check=families.check_torchvision,
)
_RANET = Model(
    name="ranet",
    summary="RANet (CVPR 2020): sub-networks of rising resolution with exits",
    settings=RaNetSettings,
    build=families.build_ranet,
    any_channels=True,
    dynamic=True,
)
_MSDNET = Model(
    name="msdnet",
    summary="MSDNet (ICLR 2018): a dense network of several scales with exits",
    settings=MsdNetSettings,
    build=families.build_msdnet,
    any_channels=True,
    dynamic=True,
)

MODELS: Registry[Model[Any, Any]] = Registry(
    "model",
    [
        _CIFAR_RESNET,
        _CIFAR_PREACT_RESNET,
        *_IMAGENET_RESNETS,
        *_PREACT_RESNETS,
        _TIMM,
        _TORCHVISION,
        _RANET,
        _MSDNET,
    ],
)


def register_model(model: Model[Any, Any]) -> None:
    """Let recipes name a model of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    MODELS.add(model)


def build_model(
    config: ModelConfig, num_classes: int, input_size: Size | None = None, channels: int = 3
) -> Backbone | DynamicNetwork:
    """Return the freshly initialised network of a model; nothing is read or downloaded.

    Args:
        config: which; of its common keys none is looked at.
        num_classes: classes of the head, or of every exit.
        input_size: height and width of the images; only networks that are built for one size ask for it.
        channels: of the images.

    Raises:
        RecipeError: for a network without units, or one that takes no images of so many channels.
    """
    built: Backbone | DynamicNetwork = _build(
        MODELS[config.name].build, config, num_classes, input_size, channels
    )
    return built


def build_backbone(
    config: ModelConfig, num_classes: int, input_size: Size | None = None, channels: int = 3
) -> Backbone:
    """Return a freshly initialised backbone, or one with the weights that `config.pretrained` downloads.

    Args:
        config: which; `config.init` is not read.
        num_classes: classes of the head.
        input_size: height and width of the images; only networks that are built for one size ask for it.
        channels: of the images.

    Raises:
        RecipeError: for a model that is no backbone, a network without units, a failed download, or a network
            that takes no images of so many channels.
    """
    model = MODELS[config.name]
    if model.dynamic:
        raise RecipeError(f"name must be that of a static network, got {config.name!r}; drop its method")
    build = model.download if config.pretrained and model.download is not None else model.build
    backbone: Backbone = _build(build, config, num_classes, input_size, channels)
    return backbone


def _build(
    build: Callable[..., Built], config: ModelConfig, num_classes: int, size: Size | None, channels: int
) -> Built:
    if MODELS[config.name].any_channels:
        return build(config.settings, config.name, num_classes, size, channels=channels)
    if channels != 3:
        raise RecipeError(
            f"data.channels must be 3 for model {config.name}, which takes no other images, got {channels}"
        )
    return build(config.settings, config.name, num_classes, size)
