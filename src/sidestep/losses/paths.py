"""The Sample Relation Module of RDI-Net: similar images should take similar paths (eq. 10 to 12)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "anchor", "mean"]


def rank_loss(
    paths: Tensor,
    statistics: Tensor,
    *,
    margin: float = 0.5,
    min_gap: float = 0.1,
    stride: int = 1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the scalar hinge loss that orders path distances as image distances are ordered (eq. 12).

    For every anchor i, the other images are sorted by ||H_i - H_j|| (ties stay in batch order); the images
    p, q at ranks j and j + stride form a triplet with the term max(0, d(P_i, P_p) - d(P_i, P_q) + margin).

    Args:
        paths: (B, L) soft execution weights, with gradient.
        statistics: (B, S) mapping H of the images, without gradient.
        margin: phi of the paper.
        min_gap: a triplet is dropped when its image distances differ by less than `min_gap` mean gaps of
            its anchor; 0 keeps all but exact ties. The paper ignores pairs that are "about the same".
        stride: distance in rank between the two images that are compared.
        reduction: "sum" is literal and of order 3e4 for 256 images, "anchor" divides by the batch, "mean"
            by the kept triplets.
    """
    order, distances = _ranking(statistics.float())
    path_distances = _pairwise(paths.float()).gather(1, order)
    terms = (path_distances[:, :-stride] - path_distances[:, stride:] + margin).clamp_min(0)
    gap = distances[:, stride:] - distances[:, :-stride]
    mean_gap = (distances[:, -1:] - distances[:, :1]) / max(distances.shape[1] - 1, 1)
    keep = (gap > 0) & (gap >= min_gap * mean_gap)
    total: Tensor = (terms * keep).sum()
    if reduction == "mean":
        return total / keep.sum().clamp_min(1)
    return total / paths.shape[0] if reduction == "anchor" else total


def rank_correlation(paths: Tensor, statistics: Tensor) -> Tensor:
    """Return the Spearman correlation of image and path distances, averaged over anchors; in [-1, 1].

    Ties (equal paths, equal images) get average ranks; an anchor whose path or image distances are all equal
    counts 0.
    """
    order, distances = _ranking(statistics.float())
    of_paths = _pairwise(paths.detach().float()).gather(1, order)
    ranks = [average_ranks(each.contiguous(), each.sort(dim=1).values) for each in (of_paths, distances)]
    a, b = (each - each.mean(dim=1, keepdim=True) for each in ranks)
    correlations: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    return correlations.mean()


def _ranking(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, B - 1) indices of the other images by rising distance, and these distances (eq. 10, 11)."""
    with torch.no_grad():
        distances = torch.cdist(statistics, statistics, compute_mode="donot_use_mm_for_euclid_dist")
        # The anchor itself comes first, whatever duplicates the batch holds.
        distances = distances.fill_diagonal_(-1.0)
        values, order = distances.sort(dim=1, stable=True)
    return order[:, 1:], values[:, 1:]


def _pairwise(paths: Tensor) -> Tensor:
    """Return (B, B) Euclidean distances; between equal paths these and their gradients are exactly 0.

    Expanded as |a|^2 + |b|^2 - 2ab, paths closer than 3e-3 would drown in rounding.
    """
    return torch.cdist(paths, paths, compute_mode="donot_use_mm_for_euclid_dist")


def average_ranks(values: Tensor, among: Tensor) -> Tensor:
    """Return the (R, N) ranks, from 0, of values among sorted ones of the same row, ties averaged.

    Args:
        values: (R, N), contiguous.
        among: (R, M) rising in every row, contiguous.
    """
    left = torch.searchsorted(among, values, right=False)
    right = torch.searchsorted(among, values, right=True)
    return (left + right - 1).float() / 2
