"""Gathered execution: only the images that choose an option are run through it, so skipping saves time."""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.layers.overwriting import may_overwrite
from sidestep.layers.unit import Unit


def run_chosen(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    """Return the unit's output, with every option computed for the images that choose it and no others.

    It has the dtype of x, whatever the options return under autocast.

    The output takes the place of x where it may (`may_overwrite`); elsewhere x is left as it was.

    Args:
        unit: in evaluation mode; in training BatchNorm would see a part of the batch only.
        x: features, one image per row.
        weights: (B, K) one-hot weights.

    Raises:
        ExecutionError: in training mode.
    """
    if unit.training:
        raise ExecutionError(
            "gathered execution needs evaluation mode, got a unit in training mode; "
            "call model.eval() first or train with masked execution"
        )
    if x.shape[0] == 1:
        return unit.run(weights.tolist()[0].index(1.0), x).to(x.dtype)
    out, computed = None, range(unit.num_options)
    if unit.keeps_input:
        out, computed = x, range(1, unit.num_options)
    chosen = {option: weights[:, option].nonzero().squeeze(1) for option in computed}
    for option, rows in chosen.items():
        if rows.numel() == x.shape[0]:
            return unit.run(option, x).to(x.dtype)
    for option, rows in chosen.items():
        if not rows.numel():
            continue
        # Indexing keeps channels_last; index_select returns contiguous maps, which convolutions reorder.
        part = unit.run(option, x[rows]).to(x.dtype)
        if out is None:
            out = _empty(x.shape[0], part)
        elif out is x and not may_overwrite(x):
            out = x.clone()
        out[rows] = part
    assert out is not None  # at least one option was chosen
    return out


def _empty(batch: int, like: Tensor) -> Tensor:
    """Return room for a batch of what `like` holds, in its memory format."""
    channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (batch, *like.shape[1:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
