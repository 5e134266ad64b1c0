"""Gates by share of the batch for all budgets: the share is what the gates are given.

A step runs its images with several budgets (`budgets_of_step`), and with budget b a unit executes the share b
of them, as `routing.share` says: ranks and gradients are those of the images of one budget. Every budget has
a running quantile of its own, in a table over budgets with straight lines between its entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.layers.constant import constant
from sidestep.layers.processes import gathered_rows
from sidestep.routing.budget_router import (
    BudgetedRouter,
    BudgetRouter,
    BudgetsConfig,
    BudgetScope,
    Gates,
    nearness,
)
from sidestep.routing.router import Router, always
from sidestep.routing.samplers import Sample, Sampler
from sidestep.routing.share import ShareConfig, ShareRouter, closed_now, normalised

# Of the table of quantiles, which bend more than what gates make of a budget.
_NUM_QUANTILES = 17


class BudgetShareRouter(BudgetedRouter):
    """Gates that are given the budget, and whose units execute that share of the batch in training.

    Args:
        inner: the gates.
        num_units: L.
        memory: of the running quantiles, per step.
    """

    quantiles: Tensor
    seen: Tensor

    def __init__(self, inner: BudgetRouter, num_units: int, *, memory: float) -> None:
        super().__init__()
        self.inner, self.memory = inner, memory
        self.config, self.asked, self.scope = inner.config, inner.asked, "unit"
        self.register_buffer("quantiles", torch.zeros(num_units, _NUM_QUANTILES))
        self.register_buffer("seen", torch.zeros(num_units, dtype=torch.int64))

    def begin(self, images: Tensor) -> Any:
        return self.inner.begin(images), self.shifts(self.asked)

    def begin_at(self, images: Tensor, budgets: Tensor) -> Any:
        # Ranks need no quantile.
        return self.inner.begin_at(images, budgets), None

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        inner, shifts = state
        logits, inner = self.inner(unit, features, inner)
        if shifts is None:
            return logits, (inner, None)
        if self.asked == 1:
            logits = always(1, 2, features)
        return logits - shifts[unit], (inner, shifts)

    def take(self, state: Any, rows: Tensor) -> Any:
        inner, shifts = state
        return self.inner.take(inner, rows), shifts

    def sampler_at(self, settings: Any, budgets: Tensor) -> Sampler:
        return TopShares(router=self, budgets=budgets, closed=closed_now(settings))

    def at(self, budget: float) -> Router:
        num_units = len(self.quantiles)
        # Nothing can be skipped with the full budget, whatever was the least margin of training.
        shares = [1.0] * num_units if budget == 1 else None
        config = ShareConfig(shares=shares, memory=self.memory)
        router = ShareRouter(self.inner.at(budget), num_units, lambda now: [budget] * num_units, config)
        router.to(self.quantiles.device)
        with torch.no_grad():
            router.shift.copy_(self.shifts(budget))
        return router.train(self.training)

    def shifts(self, budget: float) -> Tensor:
        """Return (L, 2): every unit's quantile at a budget, taken off the logit of execute; 0 for skip."""
        near = nearness(constant((budget,), self.quantiles.device), self.low, _NUM_QUANTILES)
        quantile = (self.quantiles * near).sum(dim=1)
        return torch.stack([torch.zeros_like(quantile), quantile], dim=1)

    def note_quantiles(self, unit: int, margins: Tensor, budgets: Tensor) -> None:
        """Move a unit's quantiles towards those of a batch of all processes.

        All of them move with every step, so that none falls behind gates that learn: the quantile of a share
        between two of the step's budgets is a straight line between what it is among the margins of either.

        Args:
            unit: its index.
            margins: (G, N) of this process, those of a budget in a row.
            budgets: (G,), from the smallest to 1 in any order.
        """
        with torch.no_grad():
            ordered = gathered_rows(margins.T.contiguous()).sort(dim=0, descending=True).values.T
            shares = constant(_evenly(self.low), margins.device)
            found, order = levels(ordered, shares), budgets.argsort()
            rising = budgets[order]
            right = torch.searchsorted(rising, shares).clamp(1, len(budgets) - 1)
            left, columns = right - 1, torch.arange(_NUM_QUANTILES, device=margins.device)
            gap = (rising[right] - rising[left]).clamp_min(1e-6)
            way = ((shares - rising[left]) / gap).clamp(0, 1)
            between = torch.lerp(found[order[left], columns], found[order[right], columns], way)
            kept = (self.seen[unit] / (self.seen[unit] + 1)).clamp_max(self.memory)
            self.quantiles[unit] = torch.lerp(between, self.quantiles[unit], kept)
            self.seen[unit] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TopShares:
    """Executes the images of every budget with the largest margin; of equal ones those that come first.

    Attributes:
        router: notes quantiles.
        budgets: (4,) of `budgets_of_step`, each of as many images, in order.
        closed: how far shares have moved from 1 to the budgets.
        unit: whose logits are sampled.
    """

    router: BudgetShareRouter
    budgets: Tensor
    closed: float = 1.0
    unit: int = 0

    def at(self, unit: int) -> TopShares:
        """Return the sampler of a unit."""
        return replace(self, unit=unit)

    def __call__(self, logits: Tensor) -> Sample:
        margin = (logits[:, 1].float() - logits[:, 0].float()).view(len(self.budgets), -1)
        counts, total = self._counts(margin.shape[1], logits.device)
        self.router.note_quantiles(self.unit, margin.detach(), self.budgets)
        order = margin.detach().argsort(dim=1, descending=True, stable=True)
        places = torch.arange(margin.shape[1], device=margin.device).expand_as(order)
        executed = torch.empty_like(order).scatter_(1, order, places) < counts.unsqueeze(1)
        rows = executed.flatten().logical_not().byte().argsort(stable=True)
        scaled = normalised(margin)
        level = _level(scaled.detach().gather(1, order), counts)
        soft = torch.sigmoid(scaled - level).flatten()
        execute = executed.flatten().float() * (1 + (soft - soft.detach()))
        weights = torch.stack([1 - execute, execute], dim=1)
        relaxed = torch.stack([1 - soft, soft], dim=1)
        if total == len(logits):
            return Sample(weights, relaxed)
        return Sample(weights, relaxed, rows[:total], rows[total:])

    def _counts(self, size: int, device: torch.device) -> tuple[Tensor, int]:
        """Return (4,) how many images of every budget are executed, and their sum, the same in all steps."""
        low = round((1 - self.closed * (1 - self.router.low)) * size)
        wanted = (1 - self.closed * (1 - self.budgets[2])) * size
        drawn = wanted.round().clamp(low, size)
        ends = constant((size, low), device)
        counts = torch.cat([ends, torch.stack([drawn, size + low - drawn])])
        return counts.long(), 2 * (size + low)


def _level(ordered: Tensor, counts: Tensor) -> Tensor:
    """Return (G, 1) what lies between the last of (G, N) margins that is executed and the next."""
    last = ordered.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    return (last + ordered.gather(1, counts.clamp_max(ordered.shape[1] - 1).unsqueeze(1))) / 2


def _evenly(low: float) -> tuple[float, ...]:
    """Return the shares whose quantiles are kept."""
    step = (1 - low) / (_NUM_QUANTILES - 1)
    return tuple(low + step * place for place in range(_NUM_QUANTILES))


def levels(ordered: Tensor, shares: Tensor) -> Tensor:
    """Return (G, S) margins above which lie shares of all, halfway between two that lie beside each other.

    Shares that are no whole number of images get what lies on the line between the numbers around them.

    Args:
        ordered: (G, N) margins, falling.
        shares: (S,) of them, in [0, 1].
    """
    padded = torch.cat([ordered[:, :1], ordered, ordered[:, -1:]], dim=1)
    middles = (padded[:, 1:] + padded[:, :-1]) / 2
    place = shares * ordered.shape[1]
    before = place.floor().clamp(0, ordered.shape[1] - 1)
    first = before.long()
    return torch.lerp(middles[:, first], middles[:, first + 1], place - before)


def for_all_budgets(
    gates: Gates,
    config: BudgetsConfig,
    num_units: int,
    *,
    asked: float,
    scope: BudgetScope = "unit",
    share: ShareConfig | None = None,
) -> BudgetedRouter:
    """Return gates that are given the budget.

    Args:
        gates: for one budget.
        config: settings, with a smallest budget.
        num_units: L.
        asked: budget of an evaluation that asks for none.
        scope: what budgets are fractions of.
        share: settings of gates by share of the batch, if these are such.
    """
    given = BudgetRouter(gates, config, asked=asked, scope=scope)
    return given if share is None else BudgetShareRouter(given, num_units, memory=share.memory)


def check_budgets(config: BudgetsConfig, share: ShareConfig, target: float, name: str = "target") -> None:
    """Refuse settings of budgets that contradict a method's others.

    Args:
        config: settings of budgets.
        share: settings of gates by share of the batch.
        target: budget of an evaluation that asks for none.
        name: of the setting that says it.

    Raises:
        RecipeError: naming the first.
    """
    if config.low is None:
        return
    if not config.low <= target <= 1:
        raise RecipeError(
            f"{name} must be between budgets.low and the full budget, {config.low} to 1, got {target}; an "
            "evaluation that asks for no budget has that"
        )
    if share.shares is not None or share.learn:
        what = "learn" if share.learn else "shares"
        raise RecipeError(
            f"share.{what} has no effect beside budgets.low, where every unit executes the share that is "
            f"asked for, got {getattr(share, what)}; drop it"
        )
