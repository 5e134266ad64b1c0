"""Layers of multi-scale dense networks (MSDNet, RANet): convolutions with BatchNorm and ReLU behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_basic(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Sequential:
    """Return convolution without bias, BatchNorm and ReLU; maps shrink by the stride alone, rounded up."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def bottleneck(in_channels: int, out_channels: int, *, width: int | None, stride: int = 1) -> nn.Sequential:
    """Return a 1x1 convolution to min(in_channels, width * out_channels), and a 3x3 one with the stride.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels between the convolutions as a multiple of the output's; None leaves the 3x3
            convolution alone.
        stride: 1, or 2 for maps of half the size.
    """
    if width is None:
        return conv_basic(in_channels, out_channels, 3, stride=stride)
    inner = min(in_channels, width * out_channels)
    return nn.Sequential(
        *conv_basic(in_channels, inner, 1), *conv_basic(inner, out_channels, 3, stride=stride)
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, *size) features, bilinear between the corner pixels' centres; x itself where it fits."""
    if x.shape[2:] == tuple(size):
        return x
    # Autocast interpolates in float32 on CPU, and one such map would make all features behind it float32.
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=True).to(x.dtype)


def concat(*parts: Tensor) -> Tensor:
    """Return (B, C, H, W) maps side by side in their channels, channels_last if they all are."""
    return torch.cat([_unambiguous(part) for part in parts], dim=1)


def _unambiguous(x: Tensor) -> Tensor:
    # A map with one channel can have the strides of either format, and a contiguous one among channels_last
    # maps makes cat return contiguous maps, which every convolution behind it reorders.
    return x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2) if x.shape[1] == 1 else x


class DenseLayer(nn.Module):
    """Appends features to its input, and then mixes channels if there is a transition.

    With x of this scale and y of the next finer one::

        out = transition(concat(x, down(y), own(x)))

    That is a layer of MSDNet (Huang et al. 2018, section 4). Without `down` it is one of its finest scale, or
    of DenseNet.

    Args:
        own: maps x to new features of the same height and width.
        down: maps y to new features of half its height and width, or None.
        transition: mixes all of them, or None.
    """

    def __init__(
        self, own: nn.Module, *, down: nn.Module | None = None, transition: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.own = own
        self.down = down
        self.transition = transition

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """Return the (B, C', H, W) features behind the layer.

        Args:
            x: (B, C, H, W) features of this scale.
            finer: (B, D, 2H, 2W) features of the next finer scale; only a layer with `down` reads them.
        """
        own = self.own(x)
        out = concat(x, own) if self.down is None else concat(x, self.down(finer), own)
        return _passed(self.transition, out)


class FusionLayer(nn.Module):
    """Appends features from its input and from the same place of the sub-network before (RANet, section 3.2).

    With x of this sub-network and z of the one before, all resized to the size of own(x)::

        out = concat(x, low(z), own(x))

    Args:
        own: maps x to new features; with stride 2 the layer halves the maps, x included.
        low: maps z to new features of the same height and width.
    """

    def __init__(self, own: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.own = own
        self.low = low

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the (B, C', H', W') features behind the layer.

        Args:
            x: (B, C, H, W) features of this sub-network.
            z: (B, D, h, w) features of the sub-network before, no finer than the output.
        """
        own = self.own(x)
        size = own.shape[2:]
        return concat(resize(x, size), resize(self.low(z), size), own)


class DenseBlock(nn.Module):
    """Dense layers in a row, and a transition if there is one.

    Args:
        layers: `DenseLayer`s without `down`.
        transition: what the block's output passes, or None.
    """

    def __init__(self, layers: Sequence[nn.Module], transition: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.transition = transition

    def forward(self, x: Tensor, lows: Sequence[Tensor] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the block's (B, C', H, W) output, and its input and what came out of every layer.

        Args:
            x: (B, C, H, W) output of the block before.
            lows: features of the sub-network before, which fusion blocks alone read.
        """
        features = [x]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return _passed(self.transition, features[-1]), tuple(features)


class FusionBlock(nn.Module):
    """Fusion layers in a row, one more glance at the sub-network before, and a transition if there is one.

    Args:
        layers: `FusionLayer`s, of which the last may halve the maps.
        low: maps the last features of the same block of the sub-network before to what is appended behind the
            layers.
        transition: what the block's output passes, or None.
    """

    def __init__(
        self, layers: Sequence[nn.Module], low: nn.Module, transition: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.low = low
        self.transition = transition

    def forward(self, x: Tensor, lows: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the block's (B, C', H', W') output, and its input and what came out of every layer.

        Args:
            x: (B, C, H, W) output of the block before.
            lows: features of the same block of the sub-network before: its input, and behind every layer.
        """
        features = [x]
        for layer, z in zip(self.layers, lows[:-1], strict=True):
            features.append(layer(features[-1], z))
        last = features[-1]
        out = concat(last, resize(self.low(lows[-1]), last.shape[2:]))
        return _passed(self.transition, out), tuple(features)


def _passed(transition: nn.Module | None, x: Tensor) -> Tensor:
    return x if transition is None else transition(x)
