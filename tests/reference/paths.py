"""Eq. 10 to 12 of RDI-Net with a loop for every index, and Spearman's correlation by scipy."""

from __future__ import annotations

import math

import torch
from scipy.stats import spearmanr
from torch import Tensor


def rank_loss(
    paths: Tensor,
    statistics: Tensor,
    *,
    margin: float = 0.5,
    min_gap: float = 0.1,
    stride: int = 1,
    reduction: str = "mean",
) -> Tensor:
    total, kept = torch.zeros((), dtype=torch.float64), 0
    batch = paths.shape[0]
    for anchor in range(batch):
        ranking = ranked_images(statistics, anchor)
        mean_gap = (ranking[-1][0] - ranking[0][0]) / (batch - 2)
        for j in range(len(ranking) - stride):
            (near, p), (far, q) = ranking[j], ranking[j + stride]
            if far == near or far - near < min_gap * mean_gap:
                continue
            kept += 1
            total = total + torch.relu(
                path_distance(paths[anchor], paths[p]) - path_distance(paths[anchor], paths[q]) + margin
            )
    return total / {"sum": 1, "anchor": batch, "mean": max(kept, 1)}[reduction]


def ranked_images(statistics: Tensor, anchor: int) -> list[tuple[float, int]]:
    """Return (distance, index) of the other images, nearest first, equals in batch order."""
    return sorted(
        (math.dist(statistics[anchor].tolist(), statistics[j].tolist()), j)
        for j in range(statistics.shape[0])
        if j != anchor
    )


def path_distance(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for n in range(a.shape[0]):
        total = total + (a[n].double() - b[n].double()) ** 2
    return torch.sqrt(total + 1e-12)


def rank_correlation(paths: Tensor, statistics: Tensor) -> float:
    batch = paths.shape[0]
    total = 0.0
    for anchor in range(batch):
        others = [j for j in range(batch) if j != anchor]
        image = [math.dist(statistics[anchor].tolist(), statistics[j].tolist()) for j in others]
        path = [math.dist(paths[anchor].tolist(), paths[j].tolist()) for j in others]
        if len(set(image)) > 1 and len(set(path)) > 1:
            total += float(spearmanr(image, path).statistic)
    return total / batch
