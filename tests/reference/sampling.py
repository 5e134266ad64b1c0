"""The Gumbel-softmax of eq. 8, number by number."""

from __future__ import annotations

import math

from torch import Tensor


def gumbel_softmax(
    logits: Tensor, uniform: Tensor, temperature: float, noise_scale: float
) -> list[list[float]]:
    rows = []
    for scores, draws in zip(logits.tolist(), uniform.tolist(), strict=True):
        powers = []
        for score, u in zip(scores, draws, strict=True):
            gumbel = -math.log(-math.log(min(max(u, 1e-10), 1 - 1e-7)))
            powers.append(math.exp((score + noise_scale * gumbel) / temperature))
        rows.append([power / sum(powers) for power in powers])
    return rows
