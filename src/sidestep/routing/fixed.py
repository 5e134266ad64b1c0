"""The router that has decided before: the same units for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import Sample, Sampler, argmax, given


class FixedRouter(ConstantRouter):
    """Executes the same units for every image; the others are computed in training neither.

    Args:
        executed: whether each unit is.
    """

    def __init__(self, executed: Sequence[bool]) -> None:
        super().__init__(ConstantRouter.keep([float(unit) for unit in executed]).logits.exp())
        self.executed = tuple(executed)
        self.never = frozenset(unit for unit, runs in enumerate(executed) if not runs)

    def sampler(self, settings: Any) -> Sampler:
        return FixedSampler(executed=self.executed)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSampler:
    """Says of every unit what was decided before.

    Attributes:
        executed: whether each unit is.
    """

    executed: tuple[bool, ...]

    def at(self, unit: int) -> Sampler:
        """Return the sampler of a unit."""
        return partial(given, int(self.executed[unit]))

    def __call__(self, logits: Tensor) -> Sample:
        return argmax(logits)
