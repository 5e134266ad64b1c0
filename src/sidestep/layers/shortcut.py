"""Shortcuts of blocks that change the shape: projections, or smaller maps with zeros for new channels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Shortcut = Literal["A", "B", "pool_end", "pool_both"]


def make_shortcut(
    in_channels: int, out_channels: int, *, stride: int, option: Shortcut = "A"
) -> nn.Module | None:
    """Return the shortcut of a block, or None where its shape is kept and its input is added as it is.

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of its output; with zero padding at least those of the input.
        stride: of the block.
        option: "A" (every stride-th pixel, zeros before and after, He et al. 2016), "B" (1x1 convolution and
            BatchNorm, the only one with parameters), "pool_end" (mean over stride x stride pixels, zeros
            after, BlockDrop), or "pool_both" (the same with zeros before and after, ACT and SACT).
    """
    if stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    if option == "B":
        return nn.Sequential(*make_projection(in_channels, out_channels, stride))
    return PoolShortcut(in_channels, out_channels, stride, zeros="end" if option == "pool_end" else "both")


def make_projection(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the parts of a projection: a 1x1 convolution with a stride, and BatchNorm."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return convolution, nn.BatchNorm2d(out_channels)


class PadShortcut(nn.Module):
    """Option A of He et al.: every stride-th pixel, and zeros for new channels, half before, half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = _zeros(in_channels, out_channels, before=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / stride, W / stride) features, sizes rounded up."""
        arguments = x, self.stride, self.padding
        out: Tensor = _Pad.apply(*arguments) if x.requires_grad else _pad(*arguments)
        return out


class PoolShortcut(nn.Module):
    """Means over stride x stride pixels, and zeros for the new channels (BlockDrop, ACT).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: side of the squares, which do not overlap; those at the edge of an odd map are smaller.
        zeros: "end" puts all zeros after the input's channels, "both" half of them before.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, zeros: Literal["end", "both"]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = _zeros(in_channels, out_channels, before=zeros == "both")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H / stride, W / stride) features, sizes rounded up."""
        # ceil_mode gives odd maps the size that a strided 3x3 convolution gives them.
        return F.pad(F.avg_pool2d(x, self.stride, ceil_mode=True), (0, 0, 0, 0, *self.padding))


class _Pad(torch.autograd.Function):
    """Keeps the memory format in the backward pass; torch's slices return a contiguous gradient, and every
    block before it then works on mixed formats at half the speed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.stride, ctx.padding = stride, padding
        ctx.like = torch.empty_like(x, device="meta")
        return _pad(x, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        out = torch.zeros_like(ctx.like, device=grads[0].device, dtype=grads[0].dtype)
        before, _ = ctx.padding
        out[:, :, :: ctx.stride, :: ctx.stride] = grads[0][:, before : before + out.shape[1]]
        return out, None, None


def _pad(x: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, *padding))


def _zeros(in_channels: int, out_channels: int, *, before: bool) -> tuple[int, int]:
    """Return how many zero channels come before the input's and how many after."""
    new = out_channels - in_channels
    return (new // 2, new - new // 2) if before else (0, new)
