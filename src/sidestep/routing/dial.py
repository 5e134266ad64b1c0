"""The dial of ordinary gates: a bias on their logits sets what a network costs after it was trained.

Gates are trained for one budget. With a bias b on the logit of executing a block, a gate executes where
l_execute + b > l_skip: images that were nearly worth the block get it with b above 0, and those that were
just worth it lose it below 0. So every budget between nothing and everything can be had from one network, and
blocks go to images in the gates' own order. What thresholds are to early exits, biases are to gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler

# Beyond every finite logit, and not beyond the infinite ones of units without a gate.
MOST = 1e30


class DialledRouter(Router):
    """A router whose units have biases added: of K options the one at index k gets b k / (K - 1).

    Units that always or never execute, by an infinite logit, go on doing so.

    Args:
        inner: which.
        biases: one per unit, finite.
        num_options: K.

    Attributes:
        biases: (L, K) that are added.
    """

    biases: Tensor

    def __init__(self, inner: Router, biases: Sequence[float], num_options: int = 2) -> None:
        super().__init__()
        self.inner = inner
        self.never, self.keeps_images = inner.never, inner.keeps_images
        self.register_buffer("biases", added(torch.tensor(list(biases)), num_options), persistent=False)

    def begin(self, images: Tensor) -> Any:
        return self.inner.begin(images)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.inner(unit, features, state)
        return logits + self.biases[unit].to(logits.dtype), state

    def see(self, logits: Tensor, state: Any) -> Any:
        return self.inner.see(logits, state)

    def sampler(self, settings: Any) -> Sampler | None:
        return self.inner.sampler(settings)

    def take(self, state: Any, rows: Tensor) -> Any:
        return self.inner.take(state, rows)


def added(biases: Tensor, num_options: int) -> Tensor:
    """Return what (..., L) biases add to the logits of every option, (..., L, K) in float32.

    >>> added(torch.tensor([2.0]), 3)
    tensor([[0., 1., 2.]])
    """
    shares = torch.linspace(0, 1, num_options)
    return biases.clamp(-MOST, MOST).float().unsqueeze(-1) * shares


def without_dial(router: Router | None) -> Router | None:
    """Return a router as it was trained."""
    return router.inner if isinstance(router, DialledRouter) else router


@dataclass(frozen=True, slots=True, kw_only=True)
class DialLevel:
    """A budget of a network whose gates have a dial.

    Attributes:
        macs: mean MACs per image where the biases were solved, the validation split.
        accuracy: top-1 on images that nothing was chosen on, in [0, 1].
        biases: (L) of all units.
    """

    macs: float
    accuracy: float
    biases: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Budgets of one network, as `sidestep curve` has solved them.

    Attributes:
        full_macs: of the full network.
        levels: cheapest first.
    """

    full_macs: float
    levels: list[DialLevel]

    def at(self, fraction: float) -> DialLevel:
        """Return the dearest level that costs no more than a budget.

        Args:
            fraction: largest mean MACs per image, as a fraction of the full network's.

        Raises:
            ExecutionError: where the cheapest one costs more.
        """
        return self.levels[level_within([level.macs for level in self.levels], self.full_macs, fraction)]


def level_within(macs: Sequence[float], full_macs: float, fraction: float) -> int:
    """Return the place of the dearest of some rising costs that is within a budget.

    Args:
        macs: mean MACs per image of every level, at least one.
        full_macs: of the full network.
        fraction: of them that an image may cost on average.

    Raises:
        ExecutionError: where the cheapest one costs more, or the fraction is none.
    """
    if not 0 < fraction < math.inf:
        raise ExecutionError(
            f"budget must be a fraction of the full network's MACs above 0 and finite, got {fraction}"
        )
    # A budget that a table has printed is a rounded one.
    within = [place for place, cost in enumerate(macs) if cost <= (fraction + 1e-4) * full_macs]
    if not within:
        raise ExecutionError(
            f"budget must be at least {min(macs) / full_macs:.4f} of the full network's MACs, the smallest "
            f"that was kept, got {fraction}"
        )
    return within[-1]


def frontier_from(values: Any, num_units: int) -> Frontier:
    """Return the frontier that `asdict` has made plain values of.

    Args:
        values: plain ones.
        num_units: L.

    Raises:
        ExecutionError: for values that are none, or of another network.
    """
    wrong = "its budgets of gates must have macs, accuracy and a bias for every unit; draw the curve again"
    try:
        levels = [DialLevel(**level) for level in values["levels"]]
        full, macs = float(values["full_macs"]), [float(level.macs) for level in levels]
        fits = all(math.isfinite(level.accuracy) and are_biases(level.biases, num_units) for level in levels)
    except (KeyError, TypeError, ValueError) as error:
        raise ExecutionError(wrong) from error
    if not levels or not fits or not full > 0 or not all(map(math.isfinite, macs)) or macs != sorted(macs):
        raise ExecutionError(wrong)
    return Frontier(full_macs=full, levels=levels)


def are_biases(values: Any, num_units: int) -> bool:
    """Return whether something is a list of one finite number for every unit."""
    return (
        isinstance(values, list)
        and len(values) == num_units
        and all(isinstance(value, float | int) and math.isfinite(value) for value in values)
    )
