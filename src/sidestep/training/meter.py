"""Sums of what the steps of an epoch report, kept where they are computed."""

from __future__ import annotations

import torch
from torch import Tensor

Sums = dict[str, tuple[float, int]]


class Meter:
    """Adds up figures on their device and fetches them when they are read.

    Every figure that is fetched makes the host wait for a GPU, which a training step of many small kernels
    does not forgive.
    """

    def __init__(self) -> None:
        # By names, since not every step reports the same.
        self._waiting: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add a step's figures, all scalars of one device."""
        names = tuple(figures)
        values = torch.stack([value.double() for value in figures.values()])
        if names not in self._waiting:
            self._waiting[names] = values, 1
            return
        sums, count = self._waiting[names]
        self._waiting[names] = sums + values, count + 1

    def take(self) -> Sums:
        """Return sum and count of every figure since the last call."""
        taken: Sums = {}
        for names, (sums, count) in self._waiting.items():
            add_sums(taken, {name: (value, count) for name, value in zip(names, sums.tolist(), strict=True)})
        self._waiting = {}
        return taken


def add_sums(sums: Sums, more: Sums) -> None:
    """Add sums and counts to others, in place."""
    for name, (value, number) in more.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + value, count + number
