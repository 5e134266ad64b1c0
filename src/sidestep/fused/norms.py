"""BatchNorm and what follows it, compiled into as few passes over memory as there can be.

Written as modules, BatchNorm, ReLU and blend read and write a feature map more often than they compute with
it. Here a forward pass is two passes, one for the moments and one for all the rest, and so is a backward
pass, which finds the ReLU's mask again instead of storing it. Convolutions stay torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sidestep.fused.by_hand import blend_outputs
from sidestep.fused.companions import Companions, attach, companions_of
from sidestep.fused.compiler import compiled


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """Return relu(norm(x)).

    Args:
        norm: BatchNorm, or what stands in for it.
        x: (B, C, H, W) features, which may be overwritten.
    """
    if not _can_fuse(norm):
        return F.relu(norm(x), inplace=True)
    activated: Tensor = _NormRelu.apply(x, *_state_of(norm))
    return activated


def norm_blend(norm: nn.Module, x: Tensor, skipped: Tensor, execution: Tensor) -> Tensor:
    """Return v * relu(skipped + norm(x)) + (1 - v) * skipped, see `blend_outputs`.

    Args:
        norm: BatchNorm, or what stands in for it.
        x: (B, C, H, W) output of the branch in front of its last norm.
        skipped: (B, C, H, W) output of the skipped unit.
        execution: (B,) weight v of executing.
    """
    if not _can_fuse(norm):
        return blend_outputs(norm(x), skipped, execution)
    companions = companions_of(skipped)
    low = skipped if companions is None else companions.twin
    blended, means, twin = _NormBlend.apply(x, low.to(x.dtype), execution, *_state_of(norm))
    return attach(blended, Companions(means=means, twin=twin))


def norm_add_relu(norm: nn.Module, x: Tensor, skipped: Tensor) -> Tensor:
    """Return relu(skipped + norm(x)).

    Args:
        norm: BatchNorm, or what stands in for it.
        x: (B, C, H, W) output of the branch in front of its last norm.
        skipped: (B, C, H, W) output of the shortcut.
    """
    if not _can_fuse(norm):
        return F.relu(norm(x) + skipped, inplace=True)
    companions = companions_of(skipped)
    low = skipped if companions is None else companions.twin
    activated, means, twin = _NormAddRelu.apply(x, low.to(x.dtype), *_state_of(norm))
    return attach(activated, Companions(means=means, twin=twin))


def _can_fuse(norm: nn.Module) -> bool:
    """Return whether the passes would do what this BatchNorm does, in training."""
    return (
        # No subclass: SyncBatchNorm, for one, sees other processes.
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


def _state_of(norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float]:
    """Return what the forward programs need of a BatchNorm behind the map."""
    return (
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
        norm.momentum,
        norm.eps,
    )


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *state: Any) -> Tensor:
        activated: Tensor
        activated, norm = compiled(_norm_relu_forward)(x, *state)
        ctx.save_for_backward(x, norm)
        return activated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *compiled(_norm_relu_backward)(*ctx.saved_tensors, *grads), *[None] * 5


class _NormAddRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skipped: Tensor, *state: Any) -> tuple[Tensor, Tensor, Tensor]:
        activated, means, norm = compiled(_norm_add_relu_forward)(x, skipped, *state)
        # The next convolution keeps the activated map too, and nobody else keeps the skipped one.
        ctx.save_for_backward(x, activated, norm)
        ctx.set_materialize_grads(False)
        return activated, means, activated.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, activated, norm = ctx.saved_tensors
        grad, grad_means, grad_twin = _materialized(x, *grads)
        gradients = compiled(_norm_add_relu_backward)(x, activated, norm, grad, grad_means, grad_twin)
        return *gradients, *[None] * 5


class _NormBlend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skipped: Tensor, v: Tensor, *state: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        blended, means, norm = compiled(_norm_blend_forward)(x, skipped, v, *state)
        ctx.save_for_backward(x, skipped, v, norm)
        ctx.set_materialize_grads(False)
        return blended, means, blended.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        grad, grad_means, grad_twin = _materialized(x, *grads)
        return *compiled(_norm_blend_backward)(x, *others, grad, grad_means, grad_twin), *[None] * 5


def _materialized(
    x: Tensor, grad: Tensor | None, grad_means: Tensor | None, grad_twin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of a map like x, of its means and of its twin.

    Behind the last unit the means alone are used, and no twin where a shortcut changes the shape.
    """
    grad = torch.zeros_like(x) if grad is None else grad
    return grad, x.new_zeros(x.shape[:2]) if grad_means is None else grad_means, grad_twin


def _norm_relu_forward(x: Tensor, *state: Any) -> tuple[Tensor, Tensor]:
    """Return the activated map, and what `_normalisation` does."""
    norm = _normalisation(x, *state)
    return _normalised(x, norm).clamp_min(0).to(x.dtype), norm


def _norm_relu_backward(x: Tensor, norm: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of map, weight and bias."""
    through = torch.where(_normalised(x, norm) > 0, _wide(grad), 0.0)
    sums = through.sum((2, 3)), (through * _centred(x, norm)).sum((2, 3))
    return _through_norm(x, norm, through, sums)


def _norm_add_relu_forward(x: Tensor, skipped: Tensor, *state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activated sum, its means over space, and what `_normalisation` does."""
    norm = _normalisation(x, *state)
    activated = (_normalised(x, norm) + _wide(skipped)).clamp_min(0).to(x.dtype)
    return activated, _wide(activated).mean((2, 3)).to(x.dtype), norm


def _norm_add_relu_backward(
    x: Tensor, activated: Tensor, norm: Tensor, grad: Tensor, grad_means: Tensor, grad_twin: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the gradients of map, skipped map, and BatchNorm's weight and bias."""
    grad = _wide(grad) + _wide(grad_means)[:, :, None, None] / (x.shape[2] * x.shape[3])
    grad = grad if grad_twin is None else grad + _wide(grad_twin)
    through = torch.where(activated > 0, grad, 0.0)
    sums = through.sum((2, 3)), (through * _centred(x, norm)).sum((2, 3))
    grad_x, grad_weight, grad_bias = _through_norm(x, norm, through, sums)
    return grad_x, through.to(x.dtype), grad_weight, grad_bias


def _norm_blend_forward(x: Tensor, skipped: Tensor, v: Tensor, *state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the blended map, its means over space, and what `_normalisation` does."""
    norm = _normalisation(x, *state)
    low = _wide(skipped)
    executed = (_normalised(x, norm) + low).clamp_min(0)
    blended = (low + v.view(-1, 1, 1, 1) * (executed - low)).to(x.dtype)
    # Of the rounded map, as the next router would find them; the program reads it while it is in the cache.
    return blended, _wide(blended).mean((2, 3)).to(x.dtype), norm


def _norm_blend_backward(
    x: Tensor,
    skipped: Tensor,
    v: Tensor,
    norm: Tensor,
    grad: Tensor,
    grad_means: Tensor,
    grad_twin: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of map, skipped map, weights v, and BatchNorm's weight and bias."""
    low, each, ahead = _wide(skipped), v.view(-1, 1), v.view(-1, 1, 1, 1)
    grad = _wide(grad) + _wide(grad_means)[:, :, None, None] / (x.shape[2] * x.shape[3])
    grad = grad if grad_twin is None else grad + _wide(grad_twin)
    total = _normalised(x, norm) + low
    through = torch.where(total > 0, grad, 0.0)
    grad_v = (grad * (total.clamp_min(0) - low)).sum((2, 3)).sum(1)
    sums = through.sum((2, 3)) * each, (through * _centred(x, norm)).sum((2, 3)) * each
    grad_x, grad_weight, grad_bias = _through_norm(x, norm, ahead * through, sums)
    grad_skipped = (grad + ahead * (through - grad)).to(x.dtype)
    return grad_x, grad_skipped, grad_v, grad_weight, grad_bias


def _normalisation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return (4, C) mean, inverse deviation, factor and bias of BatchNorm, whose averages move.

    Moments are taken image by image, since images lie together and are shared out among threads, and then of
    all images. Each image's are taken around its first pixel: squares of large numbers would cancel.
    """
    images, pixels = x.shape[0], x.shape[2] * x.shape[3]
    batches.add_(1)
    first = _wide(x)[:, :, :1, :1]
    centred = _wide(x) - first
    total, squares = centred.sum((2, 3)), centred.square().sum((2, 3))
    means = first[:, :, 0, 0] + total / pixels
    mean = means.mean(0)
    within, between = squares - total.square() / pixels, pixels * (means - mean).square()
    spread, count = (within + between).sum(0), images * pixels
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((spread / max(count - 1, 1)).to(running_var.dtype), momentum)
    inverse = torch.rsqrt(spread / count + eps)
    return torch.stack([mean, inverse, weight * inverse, bias])


def _centred(x: Tensor, norm: Tensor) -> Tensor:
    """Return x around the mean of every channel; `norm` is what `_normalisation` returned."""
    return _wide(x) - norm[0].view(1, -1, 1, 1)


def _normalised(x: Tensor, norm: Tensor) -> Tensor:
    """Return what BatchNorm does. Centred first, so that a channel without variance becomes its bias."""
    _, _, factor, bias = norm.view(4, 1, -1, 1, 1).unbind()
    return _centred(x, norm) * factor + bias


def _through_norm(
    x: Tensor, norm: Tensor, grad: Tensor, sums: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of BatchNorm's input, weight and bias.

    Args:
        x: its input.
        norm: what `_normalisation` returned.
        grad: (B, C, H, W) gradient of its output.
        sums: (B, C) sums over pixels of that gradient, and of its product with the centred input.
    """
    count = x.shape[0] * x.shape[2] * x.shape[3]
    _, inverse, factor, _ = norm.view(4, 1, -1, 1, 1)
    plain, centred = (total.sum(0) for total in sums)
    slope = (centred / count).view(1, -1, 1, 1) * inverse.square()
    grad_x = (grad - (plain / count).view(1, -1, 1, 1) - _centred(x, norm) * slope) * factor
    return grad_x.to(x.dtype), centred * norm[1], plain


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
