"""Blend and mean over space with backward passes written by hand, in few passes over a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sidestep.layers.pool import spatial_mean


def blend_outputs(branch: Tensor, skipped: Tensor, execution: Tensor) -> Tensor:
    """Return v * relu(skipped + branch) + (1 - v) * skipped (RDI-Net eq. 9), shape (B, C, H, W).

    Composed from torch operations the same costs ten passes over the feature map in the backward pass; here
    it is six.

    Args:
        branch: (B, C, H, W) output B(x) of the residual branch.
        skipped: (B, C, H, W) output of the skipped unit.
        execution: (B,) weight v of executing.
    """
    v = execution.to(branch.dtype).view(-1, 1, 1, 1)
    blended: Tensor = _Blend.apply(branch, skipped.to(branch.dtype), v)
    return blended


def mean_over_space(maps: Tensor) -> Tensor:
    """Return the (B, C) means of (B, C, H, W) maps.

    Without a gradient it is torch's mean. On CPU torch's mean over channels_last bfloat16 maps is far slower
    than a product with ones, and so is adding its expanded gradient to another than adding a dense one; a
    router asks for means in front of every unit.
    """
    means: Tensor = _Mean.apply(maps) if maps.requires_grad else spatial_mean(maps)
    return means


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, skipped: Tensor, v: Tensor) -> Tensor:
        executed = (branch + skipped).relu_()
        ctx.save_for_backward(executed, skipped, v)
        return torch.lerp(skipped, executed, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        executed, skipped, v = ctx.saved_tensors
        difference = executed - skipped
        grad_v = _inner(grad, difference).view_as(v)
        through_relu = torch.ops.aten.threshold_backward(grad, executed, 0)
        # Maps are reused, since the page faults of a fresh one cost more than the arithmetic.
        grad_skipped = torch.lerp(grad, through_relu, v, out=difference)
        return through_relu.mul_(v), grad_skipped, grad_v


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the (B,) inner products per image, without the float32 copies of sum()."""
    a, b = (t.permute(0, 2, 3, 1).reshape(t.shape[0], -1) for t in (a, b))
    products: Tensor = torch.linalg.vecdot(a, b)
    return products


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.shape = batch, channels, height, width = maps.shape
        if not maps.is_contiguous(memory_format=torch.channels_last):
            return spatial_mean(maps)
        rows = maps.permute(0, 2, 3, 1).view(batch, height * width, channels)
        ones = rows.new_full((1, 1, 1), 1 / (height * width)).expand(batch, 1, height * width)
        return torch.bmm(ones, rows).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        grad = (grads[0] / (height * width)).view(batch, 1, 1, channels)
        dense: Tensor = grad.expand(batch, height, width, channels).contiguous()
        return dense.permute(0, 3, 1, 2)
