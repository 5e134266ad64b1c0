"""Pre-activation ResNets for 32x32 images, as ACT and SACT use them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import WIDTHS, CifarResNetConfig
from sidestep.layers.pool import global_average_pool
from sidestep.layers.preact import BN_EPS, LEAK, PreactBlock
from sidestep.layers.unit import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PreactResNetConfig:
    """Settings of a pre-activation CIFAR ResNet.

    Args:
        depth: 6n + 2 layers for n blocks a stage: 20, 32, 44, 56, 110.
        num_classes: classes of the head.
    """

    depth: int = 32
    num_classes: int = 10

    def __post_init__(self) -> None:
        CifarResNetConfig(depth=self.depth)  # the same rule of depths


class PreactResNet(Backbone):
    """A ResNet-(6n+2) of pre-activation blocks, after the released code of SACT.

    The stem is a convolution alone; the head averages over positions before its BatchNorm and leaky ReLU.
    State-dict names are those of `CifarResNet`, with the head's BatchNorm as `bn`.
    """

    def __init__(self, config: PreactResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        blocks = (config.depth - 2) // 6
        self.layer1, self.layer2, self.layer3 = (_stage(s, blocks) for s in range(3))
        self.bn = nn.BatchNorm1d(WIDTHS[-1], eps=BN_EPS)
        self.fc = nn.Linear(WIDTHS[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    @property
    def units(self) -> list[Unit]:
        stages = (self.layer1, self.layer2, self.layer3)
        return [unit for stage in stages for unit in stage if isinstance(unit, Unit)]

    def stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv1(images)
        return features

    def head(self, features: Tensor) -> Tensor:
        pooled = self.bn(global_average_pool(features))
        logits: Tensor = self.fc(F.leaky_relu(pooled, LEAK))
        return logits


def _stage(stage: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_block(stage, index) for index in range(blocks)))


def _block(stage: int, index: int) -> PreactBlock:
    opens = index == 0 and stage > 0
    return PreactBlock(
        WIDTHS[stage - 1] if opens else WIDTHS[stage],
        WIDTHS[stage],
        stride=2 if opens else 1,
        stage=stage,
        first=index == 0 and stage == 0,
    )
