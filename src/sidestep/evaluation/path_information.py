"""What paths say about images: mutual information in bits, with what chance alone would say taken off."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from sidestep.types import Decisions

Counts = NDArray[np.int64]


def path_numbers(decided: Decisions) -> Tensor:
    """Return (N,) the number of every image's path; where an image leaves is a part of its path."""
    choices = decided.paths()
    if decided.exits is not None:
        choices = torch.cat([choices, decided.exits.argmax(dim=1, keepdim=True)], dim=1)
    numbers: Tensor = torch.unique(choices, dim=0, return_inverse=True)[1]
    return numbers


def image_bits(paths: Tensor) -> float:
    """Return the mutual information of path and image, for an image out of these: the entropy of paths.

    An image has one path where decisions are without noise, so that I(path; image) = H(path). Of N images it
    is log2 N at most, and below what more images of the same kind would show, most of all where many paths
    have one image.

    Args:
        paths: (N,) numbers.
    """
    return _entropy(_counts(paths), len(paths))


def class_bits(paths: Tensor, labels: Tensor) -> float:
    """Return the mutual information of path and class, less what chance would say of so few images.

    The information in the counts is too large: paths with a single image know its class for certain. What
    is taken off is its mean over all ways to deal the same classes out to the same images (Vinh, Epps and
    Bailey, JMLR 2010, eq. 24a), so that labels without any meaning have 0 bits in the mean. At least 0.

    Args:
        paths: (N,) numbers.
        labels: (N,) classes.
    """
    count = len(paths)
    own, of_classes = _counts(paths), _counts(labels)
    together = _counts(paths.long() * (int(labels.max()) + 1) + labels.long())
    found = _entropy(own, count) + _entropy(of_classes, count) - _entropy(together, count)
    return max(0.0, found - _by_chance(own, of_classes, count))


def _counts(values: Tensor) -> Counts:
    counts: Counts = np.sort(np.unique(values.cpu().numpy(), return_counts=True)[1])
    return counts


def _entropy(counts: Counts, total: int) -> float:
    """Return the entropy of a choice among `total` images by what they were counted as, in bits."""
    shares = counts / total
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def _by_chance(paths: Counts, classes: Counts, total: int) -> float:
    """Return the mean information when classes are dealt out at random, in bits.

    A pair of a path with a images and a class with b has n images in common with the hypergeometric
    probability, and adds n/N log2(N n / (a b)). Equal counts add the same, and are looked at once.
    """
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    of_classes, classes_alike = np.unique(classes, return_counts=True)
    b, bits = of_classes[:, np.newaxis], 0.0
    for a, paths_alike in zip(*np.unique(paths, return_counts=True), strict=True):
        n = np.arange(1, min(a, classes[-1]) + 1)
        possible = (n <= b) & (total - a - b + n >= 0)
        rest = np.where(possible, b - n, 0), np.where(possible, total - a - b + n, 0)
        log_ways = log_factorial[a] - log_factorial[n] - log_factorial[a - n]
        log_ways = log_ways + log_factorial[total - a] - log_factorial[rest[0]] - log_factorial[rest[1]]
        log_all = log_factorial[total] - log_factorial[b] - log_factorial[total - b]
        chance = np.exp(np.where(possible, log_ways - log_all, -np.inf))
        information = n / total * np.log2(total * n / (a * b))
        bits += int(paths_alike) * float((classes_alike @ (chance * information)).sum())
    return bits
