"""Eq. 1 and 9 of RDI-Net, element by element."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def blend(branch: Tensor, skipped: Tensor, execution: Tensor) -> Tensor:
    """Return v * relu(skipped + branch) + (1 - v) * skipped."""
    values = [
        execution[i[0]] * torch.relu(skipped[i] + branch[i]) + (1 - execution[i[0]]) * skipped[i]
        for i in _indices(branch)
    ]
    return torch.stack(values).view(branch.shape)


def unit(shortcut: Tensor, branch: Tensor, execution: Tensor, skipped: Tensor | None = None) -> Tensor:
    """Return v * relu(S + B) + (1 - v) * skipped, which is relu(S) by default."""
    skipped = torch.relu(shortcut) if skipped is None else skipped
    values = [
        execution[i[0]] * torch.relu(shortcut[i] + branch[i]) + (1 - execution[i[0]]) * skipped[i]
        for i in _indices(branch)
    ]
    return torch.stack(values).view(branch.shape)


def _indices(tensor: Tensor) -> list[tuple[int, ...]]:
    return list(product(*(range(size) for size in tensor.shape)))
