"""Which training images are left to the gates, so that these see images on which blocks make mistakes."""

from __future__ import annotations

import numpy as np

from sidestep.data.image_set import Indices


def parts(labels: Indices, *, share: float, seed: int, turn: int = 0) -> tuple[Indices, Indices]:
    """Return the images that blocks learn from and those that are left to the gates, in ascending order.

    The images are put into a circle in which every stretch has the classes' shares, as near as can be, and
    the gates have a stretch of it. Turn by turn it moves on by its length, until it has come around.

    >>> parts(np.array([0, 0, 1, 1]), share=0.5, seed=0)
    (array([1, 3]), array([0, 2]))

    Args:
        labels: (N,) class indices.
        share: of the images that is left to the gates, in (0, 1).
        seed: of the circle.
        turn: how often the stretch has moved on.
    """
    count = len(labels)
    shuffled = np.random.default_rng(seed).permutation(count)
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    place = np.arange(count) - (np.cumsum(sizes) - sizes)[labels[grouped]]
    circle = grouped[np.argsort((place + 0.5) / sizes[labels[grouped]], kind="stable")]
    length = min(max(round(share * count), 1), count - 1)
    left = circle[(turn * length + np.arange(length)) % count]
    return np.setdiff1d(np.arange(count), left), np.sort(left)
