"""Residual blocks as shortcut() + branch(), the units that a dynamic network chooses about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.layers.overwriting import may_overwrite
from sidestep.layers.positions import share_of_macs
from sidestep.layers.shortcut import Shortcut, make_projection, make_shortcut
from sidestep.layers.squeeze_excite import SqueezeExcite
from sidestep.layers.unit import Unit

Mix = Literal["output", "branch"]
Skip = Literal["relu", "linear", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """Settings that all residual blocks of a network share.

    Args:
        shortcut: what stands in for the input where shapes change, see `make_shortcut`.
        se_ratio: r of squeeze-and-excitation at the end of the branch, or None without.
        mix: how soft weights blend, see `ResidualUnit`.
        skip: what a skipped block returns where shapes change, see `ResidualUnit`.

    Raises:
        RecipeError: for a skip that has no effect beside the other settings, or contradicts them.
    """

    shortcut: Shortcut = "A"
    se_ratio: int | None = None
    mix: Mix = "output"
    skip: Skip = "relu"

    def __post_init__(self) -> None:
        if self.skip not in get_args(Skip):
            raise RecipeError(
                f"skip must be one of {', '.join(get_args(Skip))}, got {self.skip!r}; most papers use relu"
            )
        if self.skip != "relu" and self.mix == "branch":
            raise RecipeError(
                f"skip must be relu with mix 'branch', whose blend relu(S + v * B) is relu(S) for a skipped "
                f"block, got {self.skip!r}; drop it, or set mix: output"
            )
        if self.skip == "linear" and self.shortcut != "B":
            raise RecipeError(
                f"skip 'linear' has no effect on shortcut {self.shortcut!r}, which is never negative and "
                "needs no ReLU; drop it, or set shortcut: B"
            )


class ResidualUnit(Unit):
    """A residual block that can be executed, skipped, or blended.

    Subclasses define `shortcut` and `branch`. With S and B for these two::

        execute(x) = relu(S(x) + B(x))
        skip(x)    = relu(S(x)) | S(x) | relu(BN(conv1x1(x)))

    What skipping returns where shapes change is `BlockConfig.skip`: "relu" (the first; S alone would let
    negative features into blocks that are trained behind a ReLU), "linear" (the second, released code of
    SkipNet) or "own" (the third, a projection beside S that skipping alone runs, released code of CoDiNet).
    Where the shape is kept it is x itself.

    Attributes:
        projects: whether the shortcut is learnt and can be negative.
        rectifies: whether skipping ends with the ReLU of "relu"; nothing but a projection needs it.
        mix: how soft weights v blend. "output" is v * execute + (1 - v) * skip (RDI-Net eq. 9), "branch" is
            relu(S + v * B) (ConvNet-AIG); both agree for v in {0, 1}.
    """

    def __init__(self, *, in_channels: int, stage: int, mix: Mix = "output") -> None:
        super().__init__(in_channels=in_channels, stage=stage)
        self.projects = False
        self.rectifies = False
        self.mix: Mix = mix

    def shortcut(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, option: int, x: Tensor) -> Tensor:
        return self.execute(x) if option else self.skip(x)

    def skip(self, x: Tensor) -> Tensor:
        """Return the output of the skipped unit."""
        if self.bypass is not None:
            skipped: Tensor = self.bypass(x)
            return skipped
        return self._rectified(self.shortcut(x))

    def execute(self, x: Tensor) -> Tensor:
        """Return the output of the executed unit."""
        branch, shortcut = self.branch(x), self.shortcut(x)
        total = branch.add_(shortcut) if may_overwrite(branch) else branch + shortcut
        return F.relu(total, inplace=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the unit's output with everything computed and blended: the masked reference.

        Args:
            x: (B, C, H, W) features.
            weights: (B, 2) weights of skip and execute.
        """
        return self.blended(self.branch(x), x, weights[:, 1])

    def blended(self, branch: Tensor, x: Tensor, execution: Tensor) -> Tensor:
        """Return what `forward` does, given the branch.

        Args:
            branch: (B, C, H, W) output B(x) of the branch.
            x: input of the unit.
            execution: (B,) weight v of executing.
        """
        shortcut = self.shortcut(x).to(branch.dtype)
        v = execution.to(branch.dtype).view(-1, 1, 1, 1)
        if self.mix == "branch":
            return F.relu(shortcut + v * branch)
        executed = F.relu(shortcut + branch)
        skipped = self._rectified(shortcut) if self.bypass is None else self.bypass(x).to(branch.dtype)
        return torch.lerp(skipped, executed, v)

    def _rectified(self, shortcut: Tensor) -> Tensor:
        return F.relu(shortcut) if self.rectifies else shortcut


class _Block(ResidualUnit):
    """What convolutional blocks share: how they are closed. Parameters are named as in torchvision."""

    downsample: nn.Module | None
    se: SqueezeExcite | None

    def _close(self, in_channels: int, out_channels: int, stride: int, config: BlockConfig) -> None:
        """Add what follows the convolutions: squeeze-and-excitation, the shortcut, and a way around both."""
        self.se = None if config.se_ratio is None else SqueezeExcite(out_channels, config.se_ratio)
        self.downsample = make_shortcut(in_channels, out_channels, stride=stride, option=config.shortcut)
        self.keeps_input = self.downsample is None
        self.projects = config.shortcut == "B" and not self.keeps_input
        self.rectifies = self.projects and config.skip == "relu"
        if config.skip == "own" and not self.keeps_input:
            self.bypass = nn.Sequential(*make_projection(in_channels, out_channels, stride), nn.ReLU())

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
        config: settings; by default zeros are padded where shapes change.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        config: BlockConfig | None = None,
    ) -> None:
        config = config or BlockConfig()
        super().__init__(in_channels=in_channels, stage=stage, mix=config.mix)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._close(in_channels, out_channels, stride, config)

    def convolutions(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        last: Tensor = self.bn2(self.conv2(out))
        return last

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
        config: settings; by default the shortcut is projected where shapes change.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        stage: int,
        config: BlockConfig | None = None,
    ) -> None:
        config = config or BlockConfig(shortcut="B")
        super().__init__(in_channels=in_channels, stage=stage, mix=config.mix)
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self._close(in_channels, out_channels, stride, config)

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
        first = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + first, inplace=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the three outputs summed under the (B, 3) weights."""
        return Unit.forward(self, x, weights)


def residual_stages(
    block: Callable[..., Unit],
    *,
    stem: int,
    widths: Sequence[int],
    nums_blocks: Sequence[int],
    first: Callable[..., Unit] | None = None,
) -> list[nn.Sequential]:
    """Return the stages of a residual network, all but the first of which halve height and width.

    Args:
        block: makes a block of its two numbers of channels, `stride` and `stage`.
        stem: channels in front of the first stage.
        widths: channels behind every block of each stage.
        nums_blocks: blocks in each stage.
        first: makes the network's first block, if that is another one.
    """
    stages = []
    for stage, (width, num_blocks) in enumerate(zip(widths, nums_blocks, strict=True)):
        before = widths[stage - 1] if stage else stem
        opener = block if stage or first is None else first
        blocks = [opener(before, width, stride=2 if stage else 1, stage=stage)]
        blocks += [block(width, width, stride=1, stage=stage) for _ in range(num_blocks - 1)]
        stages.append(nn.Sequential(*blocks))
    return stages
