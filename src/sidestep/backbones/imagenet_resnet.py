"""ResNets for photographs (He et al. 2016): a stem that divides by four, four stages, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.backbone import StagedBackbone
from sidestep.errors import RecipeError
from sidestep.layers.pool import global_average_pool
from sidestep.layers.residual import BasicBlock, BlockConfig, Bottleneck, Mix, Skip, residual_stages
from sidestep.layers.squeeze_excite import check_se_ratio

WIDTHS = (64, 128, 256, 512)

# The block of every depth, and how many of it every stage has.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNetResNetConfig:
    """Settings of an ImageNet ResNet.

    Args:
        depth: 10, 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks) layers; 10 is BlockDrop's policy.
        num_classes: classes of the head.
        in_channels: of the images.
        mix: how units blend soft weights, see `ResidualUnit`.
        se_ratio: r of squeeze-and-excitation at the end of every branch, or None for a plain ResNet.
        skip: what skipped units return where shapes change, see `ResidualUnit`.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    depth: int = 50
    num_classes: int = 1000
    in_channels: int = 3
    mix: Mix = "output"
    se_ratio: int | None = None
    skip: Skip = "relu"

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise RecipeError(
                f"depth must be one of {', '.join(map(str, DEPTHS))} on ImageNet, got {self.depth}; "
                "6n + 2 layers have CIFAR ResNets"
            )
        check_se_ratio(self.se_ratio, WIDTHS[0] * DEPTHS[self.depth][0].expansion)
        self.block()

    def block(self) -> BlockConfig:
        """Return the settings of every block."""
        return BlockConfig(shortcut="B", se_ratio=self.se_ratio, mix=self.mix, skip=self.skip)


class ImageNetResNet(StagedBackbone):
    """A ResNet-10, 18, 34, 50, 101 or 152 that takes the state dicts of torchvision's and timm's.

    A shortcut is projected (option B) where shapes change, and a bottleneck has its stride in the 3x3
    convolution. Convolutions start from Kaiming's normal distribution by fan-out and BatchNorm from weight 1,
    in the last one of a branch too: from 0 a branch would give its gate nothing to learn from.
    """

    def __init__(self, config: ImageNetResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(config.in_channels, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        kind, nums_blocks = DEPTHS[config.depth]
        widths = [width * kind.expansion for width in WIDTHS]
        block = partial(kind, config=config.block())
        self.add_stages(residual_stages(block, stem=WIDTHS[0], widths=widths, nums_blocks=nums_blocks))
        self.fc = nn.Linear(widths[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_average_pool(features))
        return logits
