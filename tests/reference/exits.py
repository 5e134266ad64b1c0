"""Literal formulas of early exits: loops over images and exits."""

import math

import torch
from torch import Tensor


def literal_thresholds(scores: Tensor, shares: Tensor) -> list[float]:
    """The released codes' loop: sort, count images that nobody took, mark those that reach the threshold."""
    num_exits, num_images = scores.shape
    taken = [False] * num_images
    thresholds = []
    for exit in range(num_exits - 1):
        wanted = math.floor(num_images * float(shares[exit]))
        order = sorted(range(num_images), key=lambda image: -float(scores[exit, image]))
        threshold, count = math.inf, 0
        for image in order:
            if wanted and not taken[image]:
                count += 1
                if count == wanted:
                    threshold = float(scores[exit, image])
                    break
        for image in range(num_images):
            if float(scores[exit, image]) >= threshold:
                taken[image] = True
        thresholds.append(threshold)
    return thresholds


def literal_exits(scores: Tensor, thresholds: list[float]) -> list[int]:
    """The first exit whose score reaches its threshold, the last one if none does."""
    num_exits, num_images = scores.shape
    exits = []
    for image in range(num_images):
        reached = [k for k in range(num_exits - 1) if float(scores[k, image]) >= thresholds[k]]
        exits.append(reached[0] if reached else num_exits - 1)
    return exits


def literal_score(logits: Tensor, criterion: str) -> float:
    """The certainty of one image's (C,) logits."""
    powers = [math.exp(float(z)) for z in logits]
    p = sorted((power / sum(powers) for power in powers), reverse=True)
    if criterion == "confidence":
        return p[0]
    if criterion == "margin":
        return p[0] - p[1]
    return 1 - sum(-x * math.log(x) for x in p) / math.log(len(p))


def literal_exit_loss(exit_logits: Tensor, labels: Tensor, weights: list[float]) -> Tensor:
    """sum_k w_k mean_i -log softmax(z_ki)[y_i]."""
    total = exit_logits.new_zeros(())
    for weight, logits in zip(weights, exit_logits, strict=True):
        for row, label in zip(logits, labels.tolist(), strict=True):
            total = total - weight * (row[label] - torch.log(torch.exp(row).sum())) / len(labels)
    return total
