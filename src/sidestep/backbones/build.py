"""Backbones by name, and the static weights they can start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.errors import RecipeError
from sidestep.layers.residual import Mix

_CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Settings of the network that is made dynamic.

    Args:
        name: "cifar_resnet20", 32, 44, 56, 110: a ResNet for 32x32 images with 6n + 2 layers.
        shortcut: option A (zero padding) or B (1x1 convolution) where shapes change.
        mix: how units blend soft weights: "output" (RDI-Net eq. 9) or "branch" (ConvNet-AIG).
        init: file of static weights to start from (safetensors or torch state dict); also the teacher.
    """

    name: str = "cifar_resnet32"
    shortcut: Literal["A", "B"] = "A"
    mix: Mix = "output"
    init: str | None = None

    def __post_init__(self) -> None:
        match = _CIFAR_RESNET.fullmatch(self.name)
        if match is None:
            raise RecipeError(
                f"name must be cifar_resnet<6n+2>, got {self.name!r}; for example cifar_resnet32"
            )
        CifarResNetConfig(depth=int(match[1]))


def build_backbone(config: ModelConfig, num_classes: int) -> Backbone:
    """Return a freshly initialised backbone.

    Raises:
        RecipeError: for a name that is not known.
    """
    match = _CIFAR_RESNET.fullmatch(config.name)
    if match is None:
        raise RecipeError(f"name must be cifar_resnet<6n+2>, got {config.name!r}; for example cifar_resnet32")
    return CifarResNet(
        CifarResNetConfig(
            depth=int(match[1]), num_classes=num_classes, shortcut=config.shortcut, mix=config.mix
        )
    )
