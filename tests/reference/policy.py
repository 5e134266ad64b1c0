"""SkipNet's and BlockDrop's policy gradients with a loop for every image and gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def skipping_returns(
    executed: list[list[int]], task: list[float], alpha: float, gamma: float, scale_task: bool = False
) -> list[list[float]]:
    returns = []
    for row, value in zip(executed, task, strict=True):
        gates = len(row)
        loss = value * alpha / gates if scale_task else value
        returns.append(
            [
                sum(gamma ** (k - g) * (1 - row[k]) * alpha / gates for k in range(g, gates))
                + gamma ** (gates - g) * -loss
                for g in range(gates)
            ]
        )
    return returns


def policy_loss(probabilities: Tensor, executed: list[list[int]], returns: list[list[float]]) -> Tensor:
    """Return the mean over images of the sum of -log p(a) R; (B, G) probabilities of executing."""
    total = torch.zeros((), dtype=torch.float64)
    for p_row, a_row, r_row in zip(probabilities.double(), executed, returns, strict=True):
        for p, a, r in zip(p_row, a_row, r_row, strict=True):
            total = total - torch.log(p if a else 1 - p) * r
    return total / len(executed)


def bounded(logit: float, alpha: float) -> float:
    s = 1 / (1 + math.exp(-logit))
    return alpha * s + (1 - alpha) * (1 - s)


def blockdrop_reward(right: bool, executed: list[int], penalty: float) -> float:
    return 1 - (sum(executed) / len(executed)) ** 2 if right else penalty
