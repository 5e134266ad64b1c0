"""Bytes in training: numbers rounded as in plans on bytes, with gradients that pass straight through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The largest byte of a map, and the largest step of a weight, on either side of 0.
_MOST, _MOST_STEPS = 255, 127
# Smaller steps stand for nothing but channels of zeros.
_LEAST_SCALE = 1e-30


def weight_scale(weight: Tensor) -> Tensor:
    """Return the (O) numbers that a step of every output channel of (O, ...) weights stands for, symmetric.

    A BatchNorm behind a convolution that is folded into it multiplies weights and scale alike, so that the
    steps of a weight are those of the folded one.
    """
    scale = weight.flatten(1).abs().amax(dim=1) / _MOST_STEPS
    # A channel of zeros alone, or of numbers too small for a step.
    return torch.where(scale > _LEAST_SCALE, scale, torch.ones_like(scale))


def rounded_weight(weight: Tensor) -> Tensor:
    """Return (O, ...) weights rounded to int8 steps by output channel; the gradient is that of no rounding.

    No weight lies outside of the steps, so that it reaches all (the straight-through estimator, Bengio et al.
    2013, arXiv 1308.3432).
    """
    with torch.no_grad():
        scale = weight_scale(weight)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -_MOST_STEPS, _MOST_STEPS)


class FakeBytes(nn.Module):
    """Rounds maps to what bytes can say, `scale * (byte - zero)`, with a scale that learns.

    With q = clamp(x / scale + zero, 0, 255) the output is scale (round(q) - zero). The gradient passes
    through the rounding as if it were not there, and is 0 for x outside; the scale learns from the same
    formula, its gradient divided by sqrt(N 255), N entries of an image's map ("Learned Step Size
    Quantization", Esser et al. 2020, eq. 1 to 3 and section 2.2). torch.ao, which torch is to remove, has a
    private module for this, and torchao has none for convolutions.

    Args:
        scale: at the start, above 0.
        zero: the byte that stands for 0; it stays.

    Attributes:
        scale: as it is now.
    """

    def __init__(self, scale: float, zero: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float32))
        self.zero = zero

    def forward(self, x: Tensor) -> Tensor:
        # In float32 under autocast too: bfloat16 has no halves above 128.
        given, x = x.dtype, x.float()
        factor = (x.shape[1:].numel() * _MOST) ** -0.5
        scale = self.scale.clamp_min(_LEAST_SCALE)
        scale = scale * factor + (scale - scale * factor).detach()
        q = (x * (1 / scale) + self.zero).clamp(0, _MOST)
        q = q + (q.round() - q).detach()
        rounded: Tensor = ((q - self.zero) * scale).to(given)
        return rounded
