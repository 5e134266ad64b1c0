"""Served networks in the native engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.errors import ExecutionError
from sidestep.serve.runner import Doubles, Floats, PriceList, Row
from sidestep.targets.native_engine import TOO_OLD
from sidestep.types import CostModel

# Of exits in plans, JSON has no infinities.
_BEYOND = 3e38


@dataclass(frozen=True, slots=True)
class _EngineAnswers:
    native: Any
    prices: PriceList
    temperatures: Floats

    def row(self, index: int) -> Row:
        exit = int(self.native.exits[index])
        path = self.prices.path(self.native.options[index], exit)
        return Row(
            logits=self.native.logits[index],
            temperature=float(self.temperatures[exit]),
            path=path,
            exit=exit,
            macs=self.prices.macs(path, exit),
        )


class EngineRunner:
    """A `Runner` that is the engine.

    Args:
        engine: of the plan.
        cost: price list of the network.
        by_dial: whether images have biases of their own, and not thresholds.

    Raises:
        ExecutionError: when the engine is too old for that.
    """

    name = "engine"

    def __init__(self, engine: Any, cost: CostModel, *, by_dial: bool = False) -> None:
        if not hasattr(engine, "room_for") or (by_dial and not hasattr(engine.plan, "levels")):
            raise ExecutionError(TOO_OLD)
        self.by_dial = by_dial
        self.engine = engine
        self.size: tuple[int, int] = engine.plan.size
        self.precision = f"{engine.precision} {engine.isa}"
        self.num_threads: int = engine.num_threads
        self.temperatures: Floats = engine.temperatures
        self.num_exits = len(self.temperatures) - 1
        self.prices = PriceList(cost, self.num_exits)
        # Entropy falls with certainty, all other scores rise.
        criteria = [step["exit"]["criterion"] for step in engine.plan.steps if "exit" in step]
        self.never = -_BEYOND if "entropy" in criteria else _BEYOND
        self.always = -self.never

    def room_for(self, count: int) -> _EngineAnswers:
        return _EngineAnswers(self.engine.room_for(count, *self.size), self.prices, self.temperatures)

    def run(self, images: npt.NDArray[Any], settings: Doubles, out: _EngineAnswers, done: int) -> None:
        given = np.clip(settings, -_BEYOND, _BEYOND).astype(np.float32)
        name = "biases" if self.by_dial else "thresholds"
        self.engine(images, out=out.native, done=done, **{name: given})
