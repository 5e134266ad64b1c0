"""Pre-activation ResNets (He et al. 2016b) for 32x32 images and for photographs, as ACT and SACT use them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones import cifar_resnet, imagenet_resnet
from sidestep.backbones.backbone import StagedBackbone
from sidestep.errors import RecipeError
from sidestep.layers.norm import CIFAR, CIFAR_INNER_LEAK, IMAGENET, NormStyle
from sidestep.layers.pool import global_average_pool
from sidestep.layers.preact import PreactBlock, PreactBottleneck
from sidestep.layers.residual import Bottleneck, residual_stages
from sidestep.layers.unit import Unit

Images = Literal["cifar", "imagenet"]

# Depths for photographs: those with bottlenecks.
PREACT_DEPTHS = {
    depth: nums_blocks
    for depth, (block, nums_blocks) in imagenet_resnet.DEPTHS.items()
    if block is Bottleneck
}

# What parts of timm's resnetv2 are called here.
_TIMM_NAMES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^stem\.conv\."), lambda match: "conv1."),
    (re.compile(r"^stages\.(\d+)\.blocks\."), lambda match: f"layer{int(match[1]) + 1}."),
    (re.compile(r"\.norm(\d)\."), lambda match: f".bn{match[1]}."),
    (re.compile(r"\.downsample\.conv\."), lambda match: ".downsample."),
    (re.compile(r"^norm\."), lambda match: "bn."),
    (re.compile(r"^head\.fc\."), lambda match: "fc."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreactResNetConfig:
    """Settings of a pre-activation ResNet.

    Args:
        depth: 6n + 2 layers for n blocks a stage on "cifar" (20, 32, 44, 56, 110); 50, 101 or 152 on
            "imagenet".
        num_classes: classes of the head.
        images: "cifar" for 32x32 images, "imagenet" for photographs.
        inner_leak: slope below zero between the convolutions of a block on "cifar", see `PreactBlock`.
        in_channels: of the images.

    Raises:
        RecipeError: naming the first setting that is wrong.
    """

    depth: int = 32
    num_classes: int = 10
    images: Images = "cifar"
    inner_leak: float = CIFAR_INNER_LEAK
    in_channels: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.inner_leak <= 1.0:
            raise RecipeError(
                f"inner_leak must be in [0, 1], got {self.inner_leak}; the released code of ACT has "
                f"{CIFAR_INNER_LEAK:g}"
            )
        if self.images == "imagenet" and self.inner_leak != CIFAR_INNER_LEAK:
            raise RecipeError(
                f"inner_leak has no effect on ImageNet, which has ReLUs, got {self.inner_leak}; drop it"
            )
        if self.images not in get_args(Images):
            raise RecipeError(
                f"images must be one of {', '.join(get_args(Images))}, got {self.images!r}; "
                "cifar is for 32x32 pixels"
            )
        if self.images == "imagenet" and self.depth not in PREACT_DEPTHS:
            raise RecipeError(
                f"depth must be one of {', '.join(map(str, PREACT_DEPTHS))} on ImageNet, got {self.depth}; "
                "other networks have no bottlenecks"
            )
        if self.images == "cifar":
            cifar_resnet.CifarResNetConfig(depth=self.depth)  # the same rule of depths

    @property
    def nums_blocks(self) -> tuple[int, ...]:
        """Return the number of blocks of every stage."""
        if self.images == "imagenet":
            return PREACT_DEPTHS[self.depth]
        blocks = cifar_resnet.CifarResNetConfig(depth=self.depth).blocks_per_stage
        return (blocks,) * len(cifar_resnet.WIDTHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What the networks for 32x32 images and for photographs do not have in common.

    Attributes:
        style: of BatchNorm and activation.
        stem: kernel size and stride of the first convolution.
        pools: whether a max-pooling that halves the features follows it.
        widths: channels of the 3x3 convolutions of every stage; the first is also the stem's.
        expansion: channels behind a block over its width.
        block: makes a block.
        first: makes the network's first block, if that is another one.
        head: whether positions are averaged before BatchNorm and activation or behind them.
    """

    style: NormStyle
    stem: tuple[int, int]
    pools: bool
    widths: tuple[int, ...]
    expansion: int
    block: Callable[..., Unit]
    first: Callable[..., Unit] | None = None
    head: Literal["pool_first", "norm_first"]


_LAYOUTS: dict[Images, _Layout] = {
    "cifar": _Layout(
        style=CIFAR,
        stem=(3, 1),
        pools=False,
        widths=cifar_resnet.WIDTHS,
        expansion=PreactBlock.expansion,
        block=PreactBlock,
        first=partial(PreactBlock, first=True),
        head="pool_first",
    ),
    "imagenet": _Layout(
        style=IMAGENET,
        stem=(7, 2),
        pools=True,
        widths=imagenet_resnet.WIDTHS,
        expansion=PreactBottleneck.expansion,
        block=PreactBottleneck,
        head="norm_first",
    ),
}


class PreactResNet(StagedBackbone):
    """A ResNet of pre-activation blocks, after the released code of SACT.

    The stem is a convolution without BatchNorm, which the first block begins with; the head has the last one.
    On CIFAR a leaky ReLU follows every BatchNorm, twice behind the first convolution of a block, and the head
    averages over positions first; on ImageNet it is ReLU, and positions are averaged behind it. State-dict
    names are those of the other ResNets here, with the head's BatchNorm as `bn`; weights of timm's
    resnetv2_50, 101 and 152 load as well.
    """

    def __init__(self, config: PreactResNetConfig) -> None:
        super().__init__()
        self.config = config
        if config.images == "cifar":
            self.halting_style = CIFAR
        layout = self._layout = _LAYOUTS[config.images]
        slope = {"inner_leak": config.inner_leak} if config.images == "cifar" else {}
        kernel, stride = layout.stem
        self.conv1 = nn.Conv2d(
            config.in_channels, layout.widths[0], kernel, stride=stride, padding=kernel // 2, bias=False
        )
        widths = [width * layout.expansion for width in layout.widths]
        self.add_stages(
            residual_stages(
                partial(layout.block, **slope),
                stem=layout.widths[0],
                widths=widths,
                nums_blocks=config.nums_blocks,
                first=layout.first and partial(layout.first, **slope),
            )
        )
        norm = nn.BatchNorm1d if layout.head == "pool_first" else nn.BatchNorm2d
        self.bn = norm(widths[-1], eps=layout.style.eps)
        self.fc = nn.Linear(widths[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def static_name(self, name: str) -> str:
        for pattern, replacement in _TIMM_NAMES:
            name = pattern.sub(replacement, name)
        return super().static_name(name)

    def stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv1(images)
        return F.max_pool2d(features, 3, stride=2, padding=1) if self._layout.pools else features

    def head(self, features: Tensor) -> Tensor:
        activate = self._layout.style.activate
        if self._layout.head == "pool_first":
            pooled = activate(self.bn(global_average_pool(features)))
        else:
            pooled = global_average_pool(activate(self.bn(features), inplace=True))
        logits: Tensor = self.fc(pooled)
        return logits
