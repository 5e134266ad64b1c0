"""The router that has decided before: the same units for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import Sample, Sampler, argmax, given


class FixedRouter(ConstantRouter):
    """Executes the same units for every image; the others are not computed, in training too.

    Args:
        executed: whether each unit is.
    """

    def __init__(self, executed: Sequence[bool]) -> None:
        super().__init__(torch.tensor([[not runs, runs] for runs in executed], dtype=torch.float32))
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
