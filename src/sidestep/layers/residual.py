"""Residual blocks as shortcut() + branch(), the units that a dynamic network chooses about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.layers.blend import blend_outputs
from sidestep.layers.positions import share_of_macs
from sidestep.layers.shortcut import Shortcut, make_shortcut
from sidestep.layers.squeeze_excite import SqueezeExcite
from sidestep.layers.unit import Unit

Mix = Literal["output", "branch"]


class ResidualUnit(Unit):
    """A residual block that can be executed, skipped, or blended.

    Subclasses define `shortcut` and `branch`. With S and B for these two::

        execute(x) = relu(S(x) + B(x))
        skip(x)    = relu(S(x))

    Attributes:
        projects: whether the shortcut is learnt and can be negative.
        mix: how soft weights v blend. "output" is v * execute + (1 - v) * skip (RDI-Net eq. 9), "branch" is
            relu(S + v * B) (ConvNet-AIG); both agree for v in {0, 1}.
    """

    def __init__(self, *, in_channels: int, stage: int, mix: Mix = "output") -> None:
        super().__init__(in_channels=in_channels, stage=stage)
        self.projects = False
        self.mix: Mix = mix

    def shortcut(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, option: int, x: Tensor) -> Tensor:
        return self.execute(x) if option else self.skip(x)

    def skip(self, x: Tensor) -> Tensor:
        """Return the output of the skipped unit; inputs are non-negative, so only projections need relu."""
        return F.relu(self.shortcut(x)) if self.projects else self.shortcut(x)

    def execute(self, x: Tensor) -> Tensor:
        """Return the output of the executed unit."""
        branch, shortcut = self.branch(x), self.shortcut(x)
        # Where no gradient needs it the branch's map is reused: the page faults of a fresh one cost an eighth
        # of ResNet-110's time at batch 256.
        total = branch + shortcut if torch.is_grad_enabled() else branch.add_(shortcut)
        return F.relu(total, inplace=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the unit's output with everything computed and blended: the masked reference.

        Args:
            x: (B, C, H, W) non-negative features.
            weights: (B, 2) weights of skip and execute.
        """
        branch, shortcut = self.branch(x), self.shortcut(x)
        v = weights[:, 1].to(branch.dtype).view(-1, 1, 1, 1)
        if self.mix == "branch":
            return F.relu(shortcut + v * branch)
        if self.projects:
            # relu(relu(S) + B), which blend_outputs would compute from skip(), is not the executed output.
            return torch.lerp(F.relu(shortcut), F.relu(shortcut + branch), v)
        return blend_outputs(branch, shortcut, weights[:, 1])


class _Block(ResidualUnit):
    """What convolutional blocks share: how they are closed. Parameters are named as in torchvision."""

    downsample: nn.Module | None
    se: SqueezeExcite | None

    def _close(
        self, in_channels: int, out_channels: int, stride: int, option: Shortcut, se_ratio: int | None
    ) -> None:
        """Add what follows the convolutions: squeeze-and-excitation, and the shortcut."""
        self.se = None if se_ratio is None else SqueezeExcite(out_channels, se_ratio)
        self.downsample = make_shortcut(in_channels, out_channels, stride=stride, option=option)
        self.keeps_input = self.downsample is None
        self.projects = option == "B" and not self.keeps_input

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)

    def branch(self, x: Tensor) -> Tensor:
        out = self.convolutions(x)
        return out if self.se is None else self.se(out)

    def convolutions(self, x: Tensor) -> Tensor:
        """Return the branch up to its last BatchNorm."""
        raise NotImplementedError


class BasicBlock(_Block):
    """Two 3x3 convolutions, the block of CIFAR ResNets and of ResNet-18/34 (He et al. 2016).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's in the first block of a later stage.
        stride: 1, or 2 for the first block of a later stage.
        stage: index of the stage.
        option: the shortcut where shapes change, see `make_shortcut`.
        se_ratio: r of squeeze-and-excitation at the end of the branch, or None without.
        mix: how soft weights blend, see `ResidualUnit`.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        option: Shortcut = "A",
        se_ratio: int | None = None,
        mix: Mix = "output",
    ) -> None:
        super().__init__(in_channels=in_channels, stage=stage, mix=mix)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._close(in_channels, out_channels, stride, option, se_ratio)

    def convolutions(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return out

    def share_of_macs(self, positions: Tensor) -> Tensor:
        return share_of_macs((self.conv1, self.conv2), positions)


class Bottleneck(_Block):
    """Three convolutions, 1x1, 3x3 and 1x1, the block of ResNet-50/101/152 (He et al. 2016).

    The stride is in the 3x3 convolution, not in the first one as in the paper: the networks whose weights
    are published have it there.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, four times those of the 3x3 convolution.
        stride: 1, or 2 for the first block of a later stage.
        stage: index of the stage.
        option: the shortcut where shapes change, see `make_shortcut`.
        se_ratio: r of squeeze-and-excitation at the end of the branch, or None without.
        mix: how soft weights blend, see `ResidualUnit`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        option: Shortcut = "B",
        se_ratio: int | None = None,
        mix: Mix = "output",
    ) -> None:
        super().__init__(in_channels=in_channels, stage=stage, mix=mix)
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self._close(in_channels, out_channels, stride, option, se_ratio)

    def convolutions(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        last: Tensor = self.bn3(self.conv3(out))
        return last

    def share_of_macs(self, positions: Tensor) -> Tensor:
        return share_of_macs((self.conv1, self.conv2, self.conv3), positions)


class HalfBlock(BasicBlock):
    """A basic block with a third option between skip and execute: its first convolution alone.

    With h = relu(bn1(conv1(x))), option 1 is relu(S(x) + h), as in the released code of RDI-Net; it has no
    squeeze-and-excitation, which closes the whole branch.
    """

    num_options = 3

    def run(self, option: int, x: Tensor) -> Tensor:
        if option != 1:
            return super().run(option, x)
        first = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.shortcut(x) + first, inplace=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the three outputs summed under the (B, 3) weights."""
        return Unit.forward(self, x, weights)


def residual_stage(
    block: Callable[..., ResidualUnit],
    in_channels: int,
    out_channels: int,
    *,
    num_blocks: int,
    stride: int,
    stage: int,
) -> nn.Sequential:
    """Return the blocks of one stage, of which the first one changes the shape.

    Args:
        block: makes a block of its two numbers of channels, `stride` and `stage`.
        in_channels: channels in front of the stage.
        out_channels: channels behind every block.
        num_blocks: blocks in the stage.
        stride: of the first block; the others have 1.
        stage: index of the stage.
    """
    first = block(in_channels, out_channels, stride=stride, stage=stage)
    rest = (block(out_channels, out_channels, stride=1, stage=stage) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)
