"""Gathered execution: only the images that execute a unit enter its branch, so skipping saves time."""

from __future__ import annotations

from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.layers.residual import ResidualUnit


def gathered(unit: ResidualUnit, x: Tensor, weights: Tensor) -> Tensor:
    """Return the unit's output, with the branch computed for the images that execute it and no others.

    In inference mode the output takes the place of x, which no one reads again: writing a second map for the
    images that skip costs a fifth of ResNet-110's time at batch 256. Elsewhere x is left as it was.

    Args:
        unit: in evaluation mode; in training BatchNorm would see a part of the batch only.
        x: (B, C, H, W) features.
        weights: (B, 2) one-hot weights.

    Raises:
        ExecutionError: in training mode.
    """
    if unit.training:
        raise ExecutionError(
            "gathered execution needs evaluation mode, got a unit in training mode; "
            "call model.eval() first or train with masked execution"
        )
    if x.shape[0] == 1:
        return unit.execute(x) if weights.tolist()[0][1] else unit.skip(x)
    rows = weights[:, 1].nonzero().squeeze(1)
    if rows.numel() == x.shape[0]:
        return unit.execute(x)
    out = unit.skip(x)
    if rows.numel() == 0:
        return out
    # Indexing keeps channels_last; index_select returns contiguous maps, which every convolution reorders.
    executed = unit.execute(x[rows])
    if out is x and not x.is_inference():
        out = out.clone()
    out[rows] = executed
    return out
