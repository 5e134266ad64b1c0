"""CoDiNet's losses: views of one image take nearly the same path, different images different ones."""

from __future__ import annotations

import torch
from torch import Tensor


def consistency_loss(paths: Tensor, views: int, *, margin: float = 0.2) -> Tensor:
    """Return the scalar mean over all views of max(0, ||p - c||_2 - margin)^2, c the centre of their image.

    Args:
        paths: (B, D) paths with gradient; the views of one image are neighbours in the batch.
        views: number M of views of every image; B must be a multiple of it.
        margin: distance from the centre that costs nothing.
    """
    grouped = _grouped(paths, views)
    distances = _norm(grouped - grouped.mean(dim=1, keepdim=True))
    return (distances - margin).clamp_min(0).square().mean()


def diversity_loss(paths: Tensor, views: int, *, margin: float = 0.5) -> Tensor:
    """Return the scalar mean over pairs of images of max(0, margin - ||c_a - c_b||_2)^2, c their centres.

    Args:
        paths: (B, D) paths with gradient; the views of one image are neighbours in the batch.
        views: number M of views of every image; B must be a multiple of it.
        margin: distance beyond which two images cost nothing. 0 is returned for a single image.
    """
    centres = _grouped(paths, views).mean(dim=1)
    first, second = torch.triu_indices(len(centres), len(centres), offset=1, device=paths.device)
    terms = (margin - _norm(centres[first] - centres[second])).clamp_min(0).square()
    return terms.sum() / max(len(terms), 1)


def _grouped(paths: Tensor, views: int) -> Tensor:
    return paths.float().view(-1, views, paths.shape[1])


def _norm(difference: Tensor) -> Tensor:
    """Return Euclidean norms over the last dimension, with a finite gradient at 0."""
    return (difference.square().sum(dim=-1) + 1e-12).sqrt()
