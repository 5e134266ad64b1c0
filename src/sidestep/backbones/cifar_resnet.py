"""ResNets for 32x32 images (He et al. 2016): a stem, three stages of basic blocks, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.backbone import StagedBackbone
from sidestep.errors import RecipeError
from sidestep.layers.norm import CIFAR
from sidestep.layers.pool import global_average_pool
from sidestep.layers.residual import BasicBlock, BlockConfig, HalfBlock, Mix, Skip, residual_stages
from sidestep.layers.shortcut import Shortcut
from sidestep.layers.squeeze_excite import check_se_ratio

WIDTHS = (16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CifarResNetConfig:
    """Settings of a CIFAR ResNet.

    Args:
        depth: 6n + 2 layers for n blocks a stage: 20, 32, 38, 44, 56, 74, 110, 152.
        num_classes: classes of the head.
        in_channels: of the images.
        shortcut: what stands in for the input where shapes change, see `make_shortcut`.
        mix: how units blend soft weights, see `ResidualUnit`.
        options: 2 for skip and execute, 3 for the first convolution alone between them (`HalfBlock`).
        se_ratio: r of squeeze-and-excitation at the end of every branch, or None for a plain ResNet.
        skip: what skipped units return where shapes change, see `ResidualUnit`.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    depth: int = 32
    num_classes: int = 10
    in_channels: int = 3
    shortcut: Shortcut = "A"
    mix: Mix = "output"
    options: Literal[2, 3] = 2
    se_ratio: int | None = None
    skip: Skip = "relu"

    def __post_init__(self) -> None:
        if self.options == 3 and self.mix != "output":
            raise RecipeError(f"options 3 blends outputs, got mix {self.mix!r}; set mix to output")
        if self.shortcut not in get_args(Shortcut):
            raise RecipeError(
                f"shortcut must be one of {', '.join(get_args(Shortcut))}, got {self.shortcut!r}; "
                "He et al. use A on CIFAR"
            )
        check_se_ratio(self.se_ratio, WIDTHS[0])
        self.block()
        if self.depth < 8 or (self.depth - 2) % 6:
            raise RecipeError(
                f"depth must be 6n + 2 with n >= 1, got {self.depth}; try 20, 32, 44, 56 or 110"
            )

    @property
    def blocks_per_stage(self) -> int:
        """Return n."""
        return (self.depth - 2) // 6

    def block(self) -> BlockConfig:
        """Return the settings of every block."""
        return BlockConfig(shortcut=self.shortcut, se_ratio=self.se_ratio, mix=self.mix, skip=self.skip)


class CifarResNet(StagedBackbone):
    """A ResNet-(6n+2) with state-dict names as in torchvision (`conv1`, `layer1.0.conv1`, ..., `fc`)."""

    halting_style = CIFAR

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(config.in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        block = partial(BasicBlock if config.options == 2 else HalfBlock, config=config.block())
        nums_blocks = [config.blocks_per_stage] * len(WIDTHS)
        self.add_stages(residual_stages(block, stem=WIDTHS[0], widths=WIDTHS, nums_blocks=nums_blocks))
        self.fc = nn.Linear(WIDTHS[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)), inplace=True)

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_average_pool(features))
        return logits
