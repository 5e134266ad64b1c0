"""CoDiNet's losses with a loop for every image, view and pair."""

from __future__ import annotations

import torch
from torch import Tensor


def consistency(paths: Tensor, views: int, margin: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(paths), views):
        group = paths[start : start + views].double()
        centre = sum(group) / views
        for path in group:
            distance = ((path - centre) ** 2).sum().add(1e-12).sqrt()
            total = total + max(distance - margin, torch.zeros(())) ** 2
    return total / len(paths)


def diversity(paths: Tensor, views: int, margin: float) -> Tensor:
    centres = [sum(paths[s : s + views].double()) / views for s in range(0, len(paths), views)]
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for a in range(len(centres)):
        for b in range(a + 1, len(centres)):
            distance = ((centres[a] - centres[b]) ** 2).sum().add(1e-12).sqrt()
            total = total + max(margin - distance, torch.zeros(())) ** 2
            pairs += 1
    return total / max(pairs, 1)
