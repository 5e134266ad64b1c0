"""Eq. 15 of RDI-Net, unit by unit and image by image."""

from __future__ import annotations

from torch import Tensor


def cost_by_unit(execution: Tensor, target: float) -> float:
    """Return sum_n (mean_i v_in - t)^2."""
    batch, units = execution.shape
    total = 0.0
    for n in range(units):
        mean = sum(float(execution[i, n]) for i in range(batch)) / batch
        total += (mean - target) ** 2
    return total


def cost_by_sample(execution: Tensor, target: float) -> float:
    """Return mean_i sum_n (v_in - t)^2, as printed."""
    batch, units = execution.shape
    total = 0.0
    for i in range(batch):
        for n in range(units):
            total += (float(execution[i, n]) - target) ** 2
    return total / batch


def macs_of_image(weights: Tensor, fixed: float, options: Tensor, routers: Tensor) -> float:
    """Return the MACs of one image with weights (L, K)."""
    total = fixed
    for n in range(weights.shape[0]):
        total += float(routers[n])
        for k in range(weights.shape[1]):
            total += float(weights[n, k]) * float(options[n, k])
    return total
