"""Batch-shaping: how a gate spreads over a batch is drawn towards a prior (Bejnordi et al., ICLR 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from sidestep.layers.processes import gathered_rows
from sidestep.losses.budget import global_mean
from sidestep.losses.paths import average_ranks


def batch_shaping_loss(margins: Tensor, prior: tuple[float, float]) -> Tensor:
    """Return the (L,) Cramer-von Mises distance of every gate's values from a Beta prior.

    With x_1 <= ... <= x_N the probabilities sigmoid(m) of executing a unit over the batch, and F the
    distribution function of Beta(a, b), this is (1/N) sum_i (F(x_i) - i / (N + 1))^2 (algorithm 1 of the
    paper). A prior with a, b < 1 has its mass near 0 and 1, and a gate that treats all images alike is far
    from it, whatever its rate. The gradient is exact: ranks are locally constant, and F' is the density.

    Departures: equal values, which bfloat16 makes, share their mean rank, so that the order of a batch does
    not matter; the density, which is infinite at 0 and 1 and clipped in the released code, is taken with
    respect to m, where it is x^a (1 - x)^b / B(a, b) and finite.

    Args:
        margins: (B, L) log-odds m of executing, of this process; ranks are those among all processes.
        prior: a and b; their mean a / (a + b) is the rate that the prior asks for.
    """
    margins = margins.float()
    own = margins.detach()
    ordered = gathered_rows(own).T.sort(dim=1).values.contiguous()
    places = (average_ranks(own.T.contiguous(), ordered).T + 1) / (ordered.shape[1] + 1)
    return global_mean((beta_cdf(margins, prior) - places).square())


def beta_cdf(m: Tensor, prior: tuple[float, float]) -> Tensor:
    """Return I_x(a, b) at x = sigmoid(m), the distribution function of Beta(a, b), differentiable in m.

    Made of elementary operations, as PyTorch has no incomplete beta function, and SciPy's would fetch values
    from a GPU in every step.
    """
    cdf: Tensor = _BetaCdf.apply(m, *prior)
    return cdf


class _BetaCdf(Function):
    @staticmethod
    def forward(context: Any, m: Tensor, a: float, b: float) -> Tensor:
        slope = (a * F.logsigmoid(m) + b * F.logsigmoid(-m) - _log_beta(a, b)).exp()
        context.save_for_backward(slope)
        # Each of the two fractions converges quickly on its side of this point alone.
        middle = (a + 1) / (a + b + 2)
        x, rest = torch.sigmoid(m), torch.sigmoid(-m)
        below = slope / (a * _fraction(x.clamp_max(middle), a, b))
        above = 1 - slope / (b * _fraction(rest.clamp_max(1 - middle), b, a))
        return torch.where(x < middle, below, above)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (slope,) = gradients, context.saved_tensors
        return gradient * slope, None, None


def _fraction(x: Tensor, a: float, b: float) -> Tensor:
    """Return 1 + d_1 x / (1 + d_2 x / (1 + ...)), by which x^a (1 - x)^b / (a B(a, b)) is divided to get I_x.

    DLMF 8.17.22. As many terms as float32 can see: their number grows with the root of the larger parameter.
    """
    value = torch.ones_like(x)
    one = torch.ones_like(x)
    for n in range(2 * (6 + 3 * math.isqrt(math.ceil(max(a, b)))), 0, -1):
        k = n // 2
        if n % 2:
            d = -(a + k) * (a + b + k) / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            d = k * (b - k) / ((a + 2 * k - 1) * (a + 2 * k))
        value = torch.addcdiv(one, x, value, value=d)
    return value


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
