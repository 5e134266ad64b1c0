"""Eq. 4 to 8 of RDI-Net with the full adjacency matrix, image by image, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sidestep.routing.relational import RelationalConfig, RelationalRouter


def adjacency(rows: Sequence[Tensor], config: RelationalConfig) -> Tensor:
    """Return A (eq. 4): A[m, n] is the edge from router m to the later router n, 0 beyond the reach."""
    size = len(rows)
    edges = torch.zeros(size, size, dtype=torch.float64)
    for m in range(size):
        for n in range(m, size):
            if n - m > config.reach:
                continue
            if n == m:
                edges[m, n] = 1.0
            elif config.gamma == "auto":
                edges[m, n] = _cosine(rows[m], rows[n])
            else:
                edges[m, n] = config.gamma ** (n - m)
    return edges / edges.sum(dim=0, keepdim=True) if config.normalize_adj else edges


def relational(router: RelationalRouter, features: Sequence[Tensor]) -> list[Tensor]:
    """Return the (B, K) logits of every router in evaluation mode, given every unit's input (B, C, H, W)."""
    images = [_one_image(router, [f[i] for f in features]) for i in range(features[0].shape[0])]
    return [torch.stack([image[n] for image in images]) for n in range(len(features))]


def _one_image(router: RelationalRouter, features: Sequence[Tensor]) -> list[Tensor]:
    previous: list[Tensor] = []
    logits = []
    for n, feature in enumerate(features):
        rows = [*previous, _align(router, n, feature)]
        mixed = adjacency(rows, router.config).T @ torch.stack(rows)
        s = torch.relu(router.gcn[n].weight.double() @ mixed[-1])
        previous.append(s)
        decide = router.decide[n]
        logits.append(decide.weight.double() @ s + decide.bias.double())
    return logits


def _align(router: RelationalRouter, n: int, feature: Tensor) -> Tensor:
    linear, *rest = router.align[n]
    aligned = linear.weight.double() @ feature.double().mean(dim=(1, 2)) + linear.bias.double()
    if router.config.batch_norm:
        norm = rest[0]
        aligned = (aligned - norm.running_mean) / torch.sqrt(norm.running_var.double() + norm.eps)
        aligned = aligned * norm.weight + norm.bias
    return torch.relu(aligned)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm().clamp_min(1e-6) * b.norm().clamp_min(1e-6))
