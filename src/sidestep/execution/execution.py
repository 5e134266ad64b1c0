"""The ways to run a network, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sidestep.execution.gather import run_chosen
from sidestep.layers.unit import Unit


class RunUnit(Protocol):
    """A way to run a unit under the (B, K) decision weights; returns the unit's output in the dtype of x.

    Under autocast an option that computes may come back in another dtype than one that skips; with the
    dtype of x, outputs depend neither on the execution nor on what the other images of a batch do.
    """

    def __call__(self, unit: Unit, x: Tensor, weights: Tensor) -> Tensor: ...


def blend(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    """Return the unit's output, with every option computed for every image and blended by the weights."""
    out: Tensor = unit(x, weights)
    return out.to(x.dtype)


def execute(unit: Unit, x: Tensor) -> Tensor:
    """Return the output of a unit that nobody decides about."""
    return unit.execute(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A way to run what was decided. A network takes one with every call.

    Attributes:
        name: as commands and reports say it.
        run: how a unit is run under its decisions.
        computes_all: whether every option is computed for every image. Then weights may be soft, and
            gradients reach all of them; otherwise weights are one-hot, and what an image has done with costs
            no time.
        execute: how a unit is run that nobody decides about, as all are in a static network.
        leaves_early: whether images that have left at an exit are computed no further.
    """

    name: str
    run: RunUnit
    computes_all: bool
    execute: Callable[[Unit, Tensor], Tensor] = execute
    leaves_early: bool = False


masked = Execution(name="masked", run=blend, computes_all=True)
gathered = Execution(name="gathered", run=run_chosen, computes_all=False)
cascade = Execution(name="cascade", run=run_chosen, computes_all=False, leaves_early=True)

EXECUTIONS = {execution.name: execution for execution in (masked, gathered, cascade)}
