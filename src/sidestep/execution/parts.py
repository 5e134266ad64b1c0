"""Training in which a unit computes a part of the batch alone, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sidestep.layers.unit import Unit


def run_part(
    unit: Unit,
    run: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    others: Tensor,
) -> Tensor:
    """Return the unit's output, computed for the rows that were chosen; the others are skipped.

    In training BatchNorms of the unit see the chosen rows alone, which are those that they see in evaluation.
    The batch is parted and put together again, each in one pass over it, forward and backward; gathering and
    scattering instead would fill a map with zeros and add two.

    Args:
        unit: what is run, of two options.
        run: features and weights of some rows -> their output, every option computed.
        x: (B, ...) features.
        weights: (B, 2) of the options; those of the others are one-hot on the first.
        chosen: (N,) rows, rising.
        others: (B - N,) rows, rising.
    """
    if not len(chosen):
        return unit.skip(x).to(x.dtype)
    part, rest = _Parting.apply(x, chosen, others)
    out: Tensor = _Joining.apply(
        run(part, weights[chosen]).to(x.dtype), unit.skip(rest).to(x.dtype), chosen, others
    )
    return out


class _Parting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(chosen, others)
        return _rows(x, chosen), _rows(x, others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _joined(*grads, *ctx.saved_tensors), None, None


class _Joining(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, rest: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
        ctx.save_for_backward(chosen, others)
        return _joined(part, rest, chosen, others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        chosen, others = ctx.saved_tensors
        return _rows(grad, chosen), _rows(grad, others), None, None


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return some rows in the memory format of all; whole images are copied at once."""
    if not _channels_last(x):
        return x.index_select(0, rows)
    return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _joined(part: Tensor, rest: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    if _channels_last(part) and _channels_last(rest):
        images = _joined(part.permute(0, 2, 3, 1), rest.permute(0, 2, 3, 1), chosen, others)
        return images.permute(0, 3, 1, 2)
    out = part.new_empty(len(chosen) + len(others), *part.shape[1:])
    return out.index_copy_(0, chosen, part).index_copy_(0, others, rest)
