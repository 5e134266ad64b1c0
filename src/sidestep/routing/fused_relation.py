"""A relational router's forward pass and its backward pass, each compiled into one program.

Its some sixty operations have little to compute: in training on a CPU most of a router's time is theirs to
begin and end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sidestep.layers.fused import can_fuse, norm_relu_backward, norm_relu_forward, normalised, state_of
from sidestep.layers.programs import compiled, programs_wanted

# Returns (B, d) features, given the router's own and those of previous ones; equal ones do the same.
Aggregate = Callable[[Tensor, Sequence[Tensor]], Tensor]


def can_relate(align: nn.Module, pooled: Tensor) -> bool:
    """Return whether `relate` is wanted for pooled features, and would do what the modules do."""
    if not (programs_wanted(pooled) and isinstance(align, nn.Sequential) and len(align) == 2):
        return False
    # One vector has no variance, at which the module complains.
    return len(pooled) > 1 and can_fuse(align[1], pooled)


def relate(
    align: nn.Sequential,
    gcn: Tensor,
    decide: tuple[Tensor, Tensor],
    pooled: Tensor,
    seen: Sequence[Tensor],
    aggregate: Aggregate,
) -> tuple[Tensor, Tensor]:
    """Return the (B, K) logits and the (B, d) features s of a router, see `RelationalRouter`.

    Args:
        align: linear layer and BatchNorm.
        gcn: (d, d) weight.
        decide: (K, d) weight and (K,) bias.
        pooled: (B, C) means of the features in front of the unit.
        seen: (B, d) features s of previous routers, newest first.
        aggregate: joins aligned and seen features; hashable, and may write over the aligned ones.
    """
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else pooled.dtype
    linear, norm = align
    *state, momentum, eps = state_of(norm)
    weights = linear.weight, linear.bias, gcn, *decide
    related: tuple[Tensor, Tensor] = _Relate.apply(
        aggregate, (momentum, eps), pooled.to(low), *weights, *state, *(s.to(low) for s in seen)
    )
    return related


class _Relate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, aggregate: Aggregate, settings: tuple[float, float], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled, align, _, gcn, decide, _, *_ = tensors
        logits, s, *kept = compiled(_forward)(*tensors, aggregate, settings)
        ctx.aggregate, seen = aggregate, tensors[_BEFORE_SEEN:]
        ctx.save_for_backward(pooled, align, gcn, decide, s, *kept, *seen)
        return logits, s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        found = compiled(_backward)(*grads, *kept, ctx.aggregate)
        to_weights, to_seen = found[:_WITH_GRADIENT], found[_WITH_GRADIENT:]
        return None, None, *to_weights, *[None] * (_BEFORE_SEEN - _WITH_GRADIENT), *to_seen


# Of the tensors: pooled features, five weights, weight and bias of BatchNorm; and its three buffers.
_WITH_GRADIENT, _BEFORE_SEEN = 8, 11


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return logits, features s, and what the backward pass needs."""
    *tensors, aggregate, settings = arguments
    pooled, align, align_bias, gcn, decide, decide_bias = tensors[:6]
    low = pooled.dtype
    aligned = F.linear(pooled, align.to(low), align_bias.to(low))
    own, norm = norm_relu_forward(_as_map(aligned), *tensors[6:_BEFORE_SEEN], *settings)
    z = aggregate(_as_rows(own), tensors[_BEFORE_SEEN:]).to(low)
    s = F.linear(z, gcn.to(low)).clamp_min(0)
    return F.linear(s, decide.to(low), decide_bias.to(low)), s, aligned, norm, z


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of pooled features, weights, BatchNorm's weight and bias, and features seen."""
    grad_logits, grad_s, *kept, aggregate = arguments
    pooled, align, gcn, decide, s, aligned, norm, z, *seen = kept
    low = pooled.dtype
    through = torch.where(s > 0, grad_s + grad_logits @ decide.to(low), 0.0).to(low)
    own = _as_rows(normalised(_as_map(aligned), norm).clamp_min(0)).to(low)
    pull = torch.func.vjp(lambda own, *seen: aggregate(own, seen).to(low), own, *seen)[1]
    grad_own, *grad_seen = pull(through @ gcn.to(low))
    grad_map, *grad_norm = norm_relu_backward(_as_map(aligned), norm, _as_map(grad_own))
    grad_aligned = _as_rows(grad_map)
    return (
        grad_aligned @ align.to(low),
        *_to_linear(grad_aligned, pooled, align.dtype),
        _to_linear(through, z, gcn.dtype)[0],
        *_to_linear(grad_logits, s, decide.dtype),
        *grad_norm,
        *grad_seen,
    )


def _to_linear(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias, given that of the output and the input."""
    return (grad.T @ x).to(dtype), grad.sum(0, dtype=dtype)


def _as_map(rows: Tensor) -> Tensor:
    return rows[:, :, None, None]


def _as_rows(features: Tensor) -> Tensor:
    return features[:, :, 0, 0]
