"""The price of thinking: the ponder cost of halting networks."""

from __future__ import annotations

from torch import Tensor


def ponder_loss(ponder: Tensor) -> Tensor:
    """Return the scalar sum over stages of the batch mean of N + R (Graves 2016; Figurnov et al. 2017).

    The number of units N is a constant to the gradient, which flows through the remainder R: it pushes up the
    scores before the last unit that ran, until a stage halts one unit earlier.

    Args:
        ponder: (B, S) cost of every stage, for SACT its mean over positions (`RoutedOutput.ponder`).
    """
    return ponder.float().mean(dim=0).sum()
