"""The blend of an executed and a skipped block, with a backward pass in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blend_outputs(branch: Tensor, skipped: Tensor, execution: Tensor) -> Tensor:
    """Return v * relu(skipped + branch) + (1 - v) * skipped (RDI-Net eq. 9), shape (B, C, H, W).

    Composed from torch operations the same costs ten passes over the feature map in the backward pass; here
    it is six, which is what keeps a routed training step near the static one.

    Args:
        branch: (B, C, H, W) output B(x) of the residual branch.
        skipped: (B, C, H, W) output of the skipped unit.
        execution: (B,) weight v of executing.
    """
    v = execution.to(branch.dtype).view(-1, 1, 1, 1)
    blended: Tensor = _Blend.apply(branch, skipped.to(branch.dtype), v)
    return blended


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
