"""Multiply-adds counted by torch while something runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


def counted_macs(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the multiply-adds of a call, and what it returns.

    Args:
        run: what is called; tensors on the meta device cost nothing but their shapes.
        arguments: of the call.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with torch.no_grad(), counter:
        result = run(*arguments)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() / 2, result


class _NoModules(ModuleTracker):
    """Tracks nothing: the counter's own tracker hooks into every module that is run, in other threads too."""

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
