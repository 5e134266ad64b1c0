"""What MSDNet and RANet share: their first layers, exits, initial weights and the rules of their settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from sidestep.errors import RecipeError
from sidestep.layers.dense import conv_basic
from sidestep.layers.exit_head import ExitHead

# "cifar" keeps the size of the images, "imagenet" divides it by four.
Stem = Literal["cifar", "imagenet"]

CIFAR_HEAD_WIDTH = 128


class FirstLayers(nn.ModuleList):
    """One map per scale or sub-network, from the finest to the coarsest, each made from the one before.

    Args:
        stem: of the finest: "cifar" is a 3x3 convolution, "imagenet" a 7x7 convolution with bias of stride 2
            and a 3x3 maximum of stride 2.
        channels: of every map, the finest first.
        strides: of the 3x3 convolutions between them, one fewer.
        in_channels: of the images.
    """

    def __init__(
        self, stem: Stem, channels: Sequence[int], strides: Sequence[int], *, in_channels: int = 3
    ) -> None:
        steps = zip(channels, channels[1:], strides, strict=False)
        super().__init__(
            [
                _make_stem(stem, in_channels, channels[0]),
                *(conv_basic(a, b, 3, stride=stride) for a, b, stride in steps),
            ]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps, the finest first."""
        maps = [images]
        for layer in self:
            maps.append(layer(maps[-1]))
        return tuple(maps[1:])


def _make_stem(stem: Stem, in_channels: int, channels: int) -> nn.Sequential:
    if stem == "cifar":
        return conv_basic(in_channels, channels, 3)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 7, stride=2, padding=3),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def make_heads(stem: Stem, channels: Iterable[int], num_classes: int) -> nn.ModuleList:
    """Return one exit per entry of `channels`: 128 channels wide on CIFAR, as its input elsewhere."""
    return nn.ModuleList(
        ExitHead(inputs, CIFAR_HEAD_WIDTH if stem == "cifar" else inputs, num_classes) for inputs in channels
    )


def initialise(*parts: nn.Module) -> None:
    """Draw the weights of k x k convolutions from N(0, 2 / (k^2 * out)), and zero biases of linear layers."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def check_counts(**counts: int) -> None:
    """Raise RecipeError for the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise RecipeError(f"{name} must be at least 1, got {count}; raise it")


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise RecipeError unless the value is one of a Literal type's."""
    if value not in get_args(choices):
        known = ", ".join(get_args(choices))
        raise RecipeError(f"{name} must be one of {known}, got {value!r}; choose one of those")


def check_factors(name: str, factors: Sequence[int], number: int, of: str) -> None:
    """Raise RecipeError unless there are `number` factors of at least 1."""
    if len(factors) != number or min(factors) < 1:
        raise RecipeError(
            f"{name} must have {number} entries of at least 1, one for {of}, got {list(factors)}; "
            "make both equally long"
        )


def check_reduction(reduction: float, channels: int) -> None:
    """Raise RecipeError for a share of channels that a transition cannot keep.

    Args:
        reduction: the share.
        channels: that come to a transition at least.
    """
    if reduction > 1 or int(reduction * channels) < 1:
        raise RecipeError(
            f"reduction must be at most 1 and keep at least one of {channels} channels at a transition, "
            f"got {reduction}; the papers use 0.5"
        )
