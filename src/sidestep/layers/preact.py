"""Pre-activation residual blocks, where BatchNorm and activation stand before every convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sidestep.layers.norm import CIFAR, CIFAR_INNER_LEAK, IMAGENET, NormStyle
from sidestep.layers.overwriting import may_overwrite
from sidestep.layers.positions import share_of_macs
from sidestep.layers.shortcut import make_shortcut
from sidestep.layers.unit import Unit


class PreactUnit(Unit):
    """Convolutions behind BatchNorm and activation each, beside a shortcut (He et al. 2016b).

    With a_n(x) = act_n(BN_n(x)), S the shortcut and B(x) = conv_N(a_N(... conv_1(a_1(x))))::

        execute(x) = S(x) + B(x)
        skip(x)    = S(x)

    Nothing follows the sum, so soft weights v give S + v * B, whether outputs or branches are blended.

    Args:
        convolutions: of the branch, in order of execution; they become conv1, conv2, ... behind bn1, bn2, ...
        downsample: the shortcut, or None where its source is added as it is.
        activates_shortcut: whether the source of the shortcut is a_1(x) instead of x.
        style: of BatchNorm and activation.
        stage: index of the stage.
        inner_leak: slope below zero of the activations between convolutions, act_2 and so on; None is that
            of `style`.
    """

    bn1: nn.Module

    def __init__(
        self,
        convolutions: Sequence[nn.Conv2d],
        *,
        downsample: nn.Module | None,
        activates_shortcut: bool,
        style: NormStyle,
        stage: int,
        inner_leak: float | None = None,
    ) -> None:
        super().__init__(in_channels=convolutions[0].in_channels, stage=stage)
        self.style = style
        self.inner_style = style if inner_leak is None else replace(style, leak=inner_leak)
        self.num_convolutions = len(convolutions)
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"bn{number}", nn.BatchNorm2d(convolution.in_channels, eps=style.eps))
            self.add_module(f"conv{number}", convolution)
        self.downsample = downsample
        self.activates_shortcut = activates_shortcut
        self.keeps_input = downsample is None and not activates_shortcut

    def run(self, option: int, x: Tensor) -> Tensor:
        if not option:
            return self._shortcut(self._activate(x) if self.activates_shortcut else x)
        branch, shortcut = self._parts(x)
        return branch.add_(shortcut) if may_overwrite(branch) else branch + shortcut

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return S + v * B, everything computed: the masked reference.

        Args:
            x: (B, C, H, W) features.
            weights: (B, 2) weights of skip and execute.
        """
        branch, shortcut = self._parts(x)
        return shortcut + weights[:, 1].to(branch.dtype).view(-1, 1, 1, 1) * branch

    def share_of_macs(self, positions: Tensor) -> Tensor:
        return share_of_macs([convolution for _, convolution in self._layers()], positions)

    def _layers(self) -> Iterator[tuple[Any, Any]]:
        """Return every BatchNorm with its convolution, by name, since folding replaces modules."""
        for number in range(1, self.num_convolutions + 1):
            yield getattr(self, f"bn{number}"), getattr(self, f"conv{number}")

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return B(x) and S(x)."""
        activated = self._activate(x)
        (_, first), *rest = self._layers()
        branch: Tensor = first(activated)
        for norm, convolution in rest:
            branch = convolution(self.inner_style.activate(norm(branch), inplace=True))
        return branch, self._shortcut(activated if self.activates_shortcut else x)

    def _activate(self, x: Tensor) -> Tensor:
        return self.style.activate(self.bn1(x))

    def _shortcut(self, source: Tensor) -> Tensor:
        return source if self.downsample is None else self.downsample(source)


class PreactBlock(PreactUnit):
    """Two 3x3 convolutions with leaky ReLU and a pooled shortcut, the block of ACT and SACT on CIFAR.

    The released code applies its leaky ReLU twice behind the first convolution, whose BatchNorm has one
    already: the slope is 0.1 * 0.1 there.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's in a stage opener, which has stride 2.
        stride: 1, or 2 for a stage opener.
        stage: index of the stage.
        first: whether this is the network's first block, whose shortcut is a(x) instead of x.
        inner_leak: slope below zero between the convolutions.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        first: bool = False,
        inner_leak: float = CIFAR_INNER_LEAK,
    ) -> None:
        super().__init__(
            [
                nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ],
            downsample=make_shortcut(in_channels, out_channels, stride=stride, option="pool_both"),
            activates_shortcut=first,
            style=CIFAR,
            stage=stage,
            inner_leak=inner_leak,
        )


class PreactBottleneck(PreactUnit):
    """1x1, 3x3 and 1x1 convolutions with ReLU, the block of ResNet-v2-50, 101 and 152 (He et al. 2016b).

    Where shapes change the shortcut is a 1x1 convolution of a(x) without BatchNorm. The stride is in the 3x3
    convolution, as in the released code of SACT and in timm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, four times those of the 3x3 convolution.
        stride: 1, or 2 for the first block of a later stage.
        stage: index of the stage.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, stage: int) -> None:
        width = out_channels // self.expansion
        projection = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        super().__init__(
            [
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
                nn.Conv2d(width, out_channels, 1, bias=False),
            ],
            downsample=projection,
            activates_shortcut=projection is not None,
            style=IMAGENET,
            stage=stage,
        )
