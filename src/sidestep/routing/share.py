"""Gates by share of the batch: a unit executes the images that its gate wants most, so many as were set.

Expert choice (Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing"; Raposo et al. 2024,
"Mixture-of-Depths") for residual units. With m the logit of execute minus that of skip, and s the share of
a unit, training executes the round(s B) images of a batch with the largest m, without noise. So the budget
is met from the first step, decisions depend on the image by construction, and what is not chosen is not
computed.

In evaluation an image is decided alone: by whether m is above a running quantile of the batches, which is
taken off the logit of execute. Plans and engines find an ordinary gate.

Departure: Mixture-of-Depths scales what is executed by r, from the gate, in evaluation too. Here r is 1 with
the gradient of sigmoid(m' - quantile), straight through, since whatever runs plans executes a unit or not;
m' is m without the batch's mean and scale, which ranks do not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.layers.processes import gathered_rows, num_processes, sum_over_processes
from sidestep.routing.router import Router, always
from sidestep.routing.samplers import Sample, Sampler, given

# Shares close in so many steps: every number of images is a shape, for which passes are compiled.
CLOSING_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConfig:
    """Settings of gates by share of the batch.

    Args:
        rate: mean share of the units, for methods without a target of their own.
        shares: share of every unit instead, in order.
        learn: distribute the mean share by the units' worth, which phases with `closing: 0` measure.
        least: smallest share that is learnt.
        memory: of the running quantile, per step.
    """

    rate: float | None = None
    shares: list[float] | None = None
    learn: bool = False
    least: float = 0.1
    memory: float = 0.99

    @property
    def settled(self) -> dict[int, int]:
        """Return the units whose share is all or nothing, with the option that they always have."""
        return {unit: int(share) for unit, share in enumerate(self.shares or ()) if share in (0, 1)}

    def __post_init__(self) -> None:
        rates = [] if self.rate is None else [self.rate]
        for name, values in (("rate", rates), ("shares", self.shares or []), ("least", [self.least])):
            if any(not 0 <= value <= 1 for value in values):
                raise RecipeError(f"{name} must be in [0, 1], got {getattr(self, name)}; 0.5 runs half")
        if not 0 <= self.memory < 1:
            raise RecipeError(f"memory must be in [0, 1), got {self.memory}; 0.99 remembers 100 steps")
        if self.shares is not None and (self.learn or self.rate is not None):
            raise RecipeError(f"shares must be alone, without rate and learn, got {self.shares}; drop one")
        if not self.learn and self.least != 0.1:
            raise RecipeError(f"least has no effect where shares are not learnt, got {self.least}; drop it")


def check_share(config: ShareConfig, closing: float, *, used: bool, has_target: bool = True) -> None:
    """Refuse settings of shares that contradict a method's others.

    Args:
        config: settings of shares.
        closing: how far shares have moved from 1 to what they are.
        used: whether the method decides by shares.
        has_target: whether it has a setting that says how much is executed.

    Raises:
        RecipeError: naming the first.
    """
    if not 0 <= closing <= 1:
        raise RecipeError(f"closing must be in [0, 1], got {closing}; a ramp from 0 to 1 closes gates slowly")
    if not used and (config != ShareConfig() or closing != 1):
        raise RecipeError(
            "share and closing have no effect on gates that do not decide by share of the batch, got "
            "settings of their own; drop them"
        )
    if has_target and config.rate is not None:
        raise RecipeError(
            f"share.rate has no effect where the method's own target says it, got {config.rate}; drop it"
        )
    if used and not has_target and config.rate is None and config.shares is None:
        raise RecipeError("share.rate must say how many images a unit executes, got nothing; 0.6 is usual")


class ShareRouter(Router):
    """Gates whose units execute a share of the batch in training.

    Args:
        inner: the gates.
        num_units: L.
        rates: settings -> mean share of every unit that has a gate.
        config: settings.
        open: units without a gate, which always execute.
    """

    shift: Tensor
    seen: Tensor
    worth: Tensor
    learnt: Tensor

    def __init__(
        self,
        inner: Router,
        num_units: int,
        rates: Callable[[Any], Sequence[float]],
        config: ShareConfig,
        *,
        open: Collection[int] = (),
    ) -> None:
        super().__init__()
        if config.shares is not None and len(config.shares) != num_units:
            raise RecipeError(
                f"share.shares must name every unit once, got {len(config.shares)} for {num_units} units"
            )
        self.inner, self.config, self.open = inner, config, frozenset(open)
        self.keeps_images = inner.keeps_images
        self.settled = config.settled
        self.never = frozenset(unit for unit, option in self.settled.items() if not option)
        self._rates = rates
        # Quantile of every unit, taken off the logit of execute; 0 for skip.
        self.register_buffer("shift", torch.zeros(num_units, 2))
        self.register_buffer("seen", torch.zeros(num_units, dtype=torch.int64))
        self.register_buffer("worth", torch.zeros(num_units))
        # Shares that were learnt; all 0 until they are.
        self.register_buffer("learnt", torch.zeros(num_units))
        self._known: list[float] | None = None
        self.register_load_state_dict_post_hook(_forget_known)  # type: ignore[no-untyped-call]

    def begin(self, images: Tensor) -> Any:
        return self.inner.begin(images)

    def take(self, state: Any, rows: Tensor) -> Any:
        return self.inner.take(state, rows)

    def see(self, logits: Tensor, state: Any) -> Any:
        return self.inner.see(logits, state)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.inner(unit, features, state)
        if unit in self.settled:
            return always(self.settled[unit], 2, features), state
        # Ranks need no quantile, and one that moves would be a moving target.
        return logits if self.training or unit in self.open else logits - self.shift[unit], state

    def sampler(self, settings: Any) -> Sampler:
        """Return who decides in training, given the method's settings at this step."""
        closed = closed_now(settings)
        shares = [1 - closed * (1 - share) for share in self.shares(settings, closed=closed)]
        return TopShare(router=self, shares=tuple(shares))

    def shares(self, settings: Any, *, closed: float = 1.0) -> list[float]:
        """Return the share of every unit once all are closed; learnt ones are settled when that begins."""
        if self.config.shares is not None:
            chosen = list(self.config.shares)
        elif self.config.learn and (closed > 0 or any(self._fetched())):
            if not any(self._fetched()):
                self._settle(list(self._rates(settings)))
            chosen = self._fetched()
        else:
            chosen = list(self._rates(settings))
        return [1.0 if unit in self.open else share for unit, share in enumerate(chosen)]

    def _fetched(self) -> list[float]:
        """Return the learnt shares as numbers, which a step of a GPU that is recorded could not fetch."""
        if self._known is None:
            self._known = self.learnt.tolist()
        return self._known

    def note_quantile(self, unit: int, margin: Tensor, count: int) -> None:
        """Move a unit's quantile towards that of a batch of all processes.

        Args:
            unit: its index.
            margin: (B,) of this process.
            count: images that are executed of these.
        """
        with torch.no_grad():
            margins = gathered_rows(margin)
            if count in (0, len(margin)):
                # As far beyond all margins as these lie apart: a larger number would outlive an average.
                least, most = margins.min(), margins.max()
                beyond = most - least + 1
                self.shift[unit, 1] = least - beyond if count else most + beyond
                self.seen[unit].zero_()
                return
            first = count * len(margins) // len(margin)
            ordered = margins.sort(descending=True).values
            between = (ordered[first - 1] + ordered[first]) / 2
            kept = (self.seen[unit] / (self.seen[unit] + 1)).clamp_max(self.config.memory)
            # What stood for none or all is forgotten with the first batch.
            self.shift[unit, 1] = torch.where(
                kept > 0, torch.lerp(between, self.shift[unit, 1], kept), between
            )
            self.seen[unit] += 1

    def note_worth(self, unit: int, count: int, gradient: Tensor) -> None:
        """Note what a unit is worth: the mean of |dL / dv| over the images that it executes.

        L is an image's loss and v its weight of executing, so that is, to first order, what skipping the
        unit would change (Molchanov et al. 2017).
        """
        with torch.no_grad():
            found = gradient.float().abs().sum() * (len(gradient) / count)
            self.worth[unit] = torch.where(self.worth[unit] > 0, self.worth[unit].lerp(found, 0.01), found)

    def _settle(self, rates: Sequence[float]) -> None:
        gated = [unit for unit in range(len(rates)) if unit not in self.open]
        worth = self.worth if num_processes() == 1 else sum_over_processes(self.worth)
        if not bool((worth[gated] > 0).all()):
            raise RecipeError(
                "share.learn needs a phase in which all units run, got none before shares close; add one "
                "with settings: {closing: 0}"
            )
        mean = sum(rates[unit] for unit in gated) / len(gated)
        self.learnt.fill_(1.0)
        self.learnt[gated] = allocated(worth[gated], mean, self.config.least)
        self._known = None


def _forget_known(router: Any, keys: object) -> None:
    router._known = None


def closed_now(settings: Any) -> float:
    """Return how far shares have moved from 1 to what they are, in steps."""
    steps: int = math.floor(settings.closing * CLOSING_STEPS + 1e-6)
    return steps / CLOSING_STEPS


def allocated(worth: Tensor, mean: float, least: float) -> Tensor:
    """Return (L,) shares in proportion to worth, none below `least` or above 1, with a given mean.

    >>> allocated(torch.tensor([1.0, 3.0]), 0.4, 0.1)
    tensor([0.2000, 0.6000])

    Args:
        worth: (L,) above 0.
        mean: of the shares.
        least: smallest share; the mean where that is smaller.
    """
    low, high = 0.0, 1 / float(worth.double().min())
    for _ in range(100):
        factor = (low + high) / 2
        shares = (worth.double() * factor).clamp(min(least, mean), 1.0)
        low, high = (factor, high) if float(shares.mean()) < mean else (low, factor)
    return shares.to(worth)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopShare:
    """Executes the images of a batch with the largest margin; of equal ones those that come first.

    Attributes:
        router: notes quantiles and worth.
        shares: of every unit.
        unit: whose logits are sampled.
    """

    router: ShareRouter
    shares: tuple[float, ...]
    unit: int = 0

    def at(self, unit: int) -> TopShare:
        """Return the sampler of a unit."""
        return replace(self, unit=unit)

    def __call__(self, logits: Tensor) -> Sample:
        unit, batch, router = self.unit, len(logits), self.router
        option = 1 if unit in router.open else router.settled.get(unit)
        if option is not None:
            return given(option, logits)
        margin = logits[:, 1].float() - logits[:, 0].float()
        if not router.training:
            # Gates that are frozen in this phase have taken the quantile off, which moves on nevertheless.
            margin = margin + router.shift[unit, 1]
        count = min(max(round(self.shares[unit] * batch), 0), batch)
        router.note_quantile(unit, margin.detach(), count)
        order = margin.detach().argsort(descending=True, stable=True)
        chosen, others = order[:count].sort().values, order[count:].sort().values
        scaled = normalised(margin)
        soft = torch.sigmoid(scaled - _between(scaled.detach()[order], count))
        execute = torch.zeros_like(soft).index_fill(0, chosen, 1.0) * (1 + (soft - soft.detach()))
        if execute.requires_grad and count and router.config.learn:
            hook: Any = execute.register_hook
            hook(partial(router.note_worth, unit, count))
        weights = torch.stack([1 - execute, execute], dim=1)
        relaxed = torch.stack([1 - soft, soft], dim=1)
        if count == batch:
            return Sample(weights, relaxed)
        return Sample(weights, relaxed, chosen, others)


def normalised(margin: Tensor) -> Tensor:
    """Return (..., B) margins around their mean, over sqrt(variance + 1).

    Ranks know neither where margins lie nor how far apart, nor must the gradient: as long as executing more
    is better all would rise for ever, and with them what they are computed from. One is added so that gates
    whose margins are all but equal, as at the start, have no gradients of a thousand times the size.
    """
    centred = margin - margin.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + 1)


def _between(ordered: Tensor, count: int) -> Tensor:
    """Return what lies between the last margin that is executed and the first that is not."""
    if count in (0, len(ordered)):
        return ordered[-1 if count else 0]
    return (ordered[count - 1] + ordered[count]) / 2
