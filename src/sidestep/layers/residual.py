"""Residual blocks as shortcut() + branch(), the units that a dynamic network chooses about."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sidestep.layers.blend import blend_outputs

Mix = Literal["output", "branch"]


class Execute(Protocol):
    """A way to run a unit under the (B, K) decision weights; returns the unit's (B, C, H, W) output."""

    def __call__(self, unit: ResidualUnit, x: Tensor, weights: Tensor) -> Tensor: ...


class ResidualUnit(nn.Module):
    """A residual block that can be executed, skipped, or blended.

    Subclasses define `shortcut` and `branch`. With S and B for these two::

        execute(x) = relu(S(x) + B(x))
        skip(x)    = relu(S(x))

    Attributes:
        in_channels: channels of the input, which routers pool.
        stage: index of the stage, for weights that routers share by stage.
        projects: whether the shortcut is learnt and can be negative.
        mix: how soft weights v blend. "output" is v * execute + (1 - v) * skip (RDI-Net eq. 9), "branch" is
            relu(S + v * B) (ConvNet-AIG); both agree for v in {0, 1}.
    """

    def __init__(self, *, in_channels: int, stage: int, mix: Mix = "output") -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stage = stage
        self.projects = False
        self.mix: Mix = mix

    def shortcut(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def skip(self, x: Tensor) -> Tensor:
        """Return the output of the skipped unit; inputs are non-negative, so only projections need relu."""
        return self.shortcut(x)

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


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, and zeros for the new channels, half before, half after."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Pad.apply(x, self.padding) if x.requires_grad else _pad(x, self.padding)
        return out


class _Pad(torch.autograd.Function):
    """Keeps the memory format in the backward pass; torch's slices return a contiguous gradient, and every
    block before it then works on mixed formats at half the speed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        ctx.like = torch.empty_like(x, device="meta")
        return _pad(x, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = torch.zeros_like(ctx.like, device=grads[0].device, dtype=grads[0].dtype)
        out[:, :, ::2, ::2] = grads[0][:, ctx.padding : grads[0].shape[1] - ctx.padding]
        return out, None


def _pad(x: Tensor, padding: int) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, padding, padding))


class BasicBlock(ResidualUnit):
    """Two 3x3 convolutions, the block of CIFAR ResNets and of ResNet-18/34 (He et al. 2016).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's in a stage opener, which has stride 2.
        stride: 1, or 2 for a stage opener.
        stage: index of the stage.
        option: "A" (zero padding, no parameters) or "B" (1x1 convolution and BatchNorm) where shapes change.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, stage: int, option: Literal["A", "B"] = "A"
    ) -> None:
        super().__init__(in_channels=in_channels, stage=stage)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.projects = option == "B"
            self.downsample = (
                nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
                if self.projects
                else PadShortcut(in_channels, out_channels)
            )

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)

    def skip(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x)) if self.projects else self.shortcut(x)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return out
