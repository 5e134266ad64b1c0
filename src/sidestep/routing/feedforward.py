"""SkipNet's convolutional gates, which look at the whole feature map in front of their unit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sidestep.layers.pool import global_average_pool
from sidestep.routing.router import Router, always


class FeedForwardRouter(Router):
    """Convolutional gates (SkipNet's FFGate-I and FFGate-II); the first unit has none and always executes.

    FFGate-I pools by 2 and has two 3x3 convolutions, the second with stride 2; FFGate-II has that one alone.
    A gate costs an eighth of its block or more: 15.6 % and 12.5 % of a block of a CIFAR ResNet. Weights start
    as in the released code, whose last layer is a 1x1 convolution and so has the rule of convolutions,
    N(0, 2 / fan-out): a deviation of 1 with two outputs. Gates are far apart from the start.

    Args:
        channels: input channels of every unit.
        deep: FFGate-I instead of FFGate-II.
    """

    def __init__(self, channels: Sequence[int], *, deep: bool) -> None:
        super().__init__()
        gated = channels[1:]
        self.features = nn.ModuleList(_deep(c) if deep else _convolution(c, stride=2) for c in gated)
        self.decide = nn.ModuleList(_decide(c) for c in gated)

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        if unit == 0:
            return always(1, 2, features), state
        pooled = global_average_pool(self.features[unit - 1](features))
        return self.decide[unit - 1](pooled), state


def _deep(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(2), *_convolution(channels, stride=1), *_convolution(channels, stride=2)
    )


def _convolution(channels: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _decide(channels: int) -> nn.Linear:
    linear = nn.Linear(channels, 2)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    return linear
