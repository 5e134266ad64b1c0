"""ResNets for 32x32 images (He et al. 2016): a stem, three stages of basic blocks, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.layers.pool import global_average_pool
from sidestep.layers.residual import BasicBlock, Mix, ResidualUnit

WIDTHS = (16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CifarResNetConfig:
    """Settings of a CIFAR ResNet.

    Args:
        depth: 6n + 2 layers for n blocks a stage: 20, 32, 44, 56, 110.
        num_classes: classes of the head.
        shortcut: option A (zero padding) or B (1x1 convolution) where shapes change.
        mix: how units blend soft weights, see `ResidualUnit`.
    """

    depth: int = 32
    num_classes: int = 10
    shortcut: Literal["A", "B"] = "A"
    mix: Mix = "output"

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise RecipeError(
                f"depth must be 6n + 2 with n >= 1, got {self.depth}; try 20, 32, 44, 56 or 110"
            )


class CifarResNet(Backbone):
    """A ResNet-(6n+2) with state-dict names as in torchvision (`conv1`, `layer1.0.conv1`, ..., `fc`)."""

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        blocks = (config.depth - 2) // 6
        self.layer1, self.layer2, self.layer3 = (_stage(config, s, blocks) for s in range(3))
        self.fc = nn.Linear(WIDTHS[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @property
    def units(self) -> list[ResidualUnit]:
        stages = (self.layer1, self.layer2, self.layer3)
        return [unit for stage in stages for unit in stage if isinstance(unit, ResidualUnit)]

    def stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)), inplace=True)

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_average_pool(features))
        return logits


def _stage(config: CifarResNetConfig, stage: int, blocks: int) -> nn.Sequential:
    units = []
    for index in range(blocks):
        opens = index == 0 and stage > 0
        unit = BasicBlock(
            WIDTHS[stage - 1] if opens else WIDTHS[stage],
            WIDTHS[stage],
            stride=2 if opens else 1,
            stage=stage,
            option=config.shortcut,
        )
        unit.mix = config.mix
        units.append(unit)
    return nn.Sequential(*units)
