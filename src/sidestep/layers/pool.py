"""Global average pooling as routers need it: cheap in both directions, in bfloat16 too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sidestep.layers.companions import companions_of


def global_average_pool(features: Tensor) -> Tensor:
    """Return the (B, C) means of (B, C, H, W) features over space, or of (B, N, C) tokens over all tokens.

    On CPU torch's mean over channels_last bfloat16 maps takes ten times as long as a product with ones,
    and adding its expanded gradient ten times as long as adding a dense one; a router pools in front of every
    unit, so both count in training. Elsewhere the mean is kept: it is no MAC in the cost book.
    """
    companions = companions_of(features)
    if companions is not None:
        return companions.means
    if features.dim() == 3:
        return features.mean(1)
    pooled: Tensor = _Pool.apply(features) if features.requires_grad else _mean(features)
    return pooled


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.shape = batch, channels, height, width = features.shape
        if not features.is_contiguous(memory_format=torch.channels_last):
            return _mean(features)
        rows = features.permute(0, 2, 3, 1).view(batch, height * width, channels)
        ones = rows.new_full((1, 1, 1), 1 / (height * width)).expand(batch, 1, height * width)
        return torch.bmm(ones, rows).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        grad = (grads[0] / (height * width)).view(batch, 1, 1, channels)
        dense: Tensor = grad.expand(batch, height, width, channels).contiguous()
        return dense.permute(0, 3, 1, 2)


def _mean(features: Tensor) -> Tensor:
    return features.mean((2, 3))
