"""Multiply-adds counted by torch while something runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sidestep.internals import flop_counter


def counted_macs(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the multiply-adds of a call, and what it returns.

    Args:
        run: what is called; tensors on the meta device cost nothing but their shapes.
        arguments: of the call.
    """
    counter = flop_counter()
    with torch.no_grad(), counter:
        result = run(*arguments)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() / 2, result
