"""Decisions that are hardly any: units of which nearly all images take one option, frozen and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import ExportError
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.samplers import Sample, Sampler, argmax
from sidestep.types import Batch, CostModel

# An image runs no more segments than these unless asked for: every further call costs more than it saves.
DEFAULT_SEGMENTS = 8
# Keep rates below this, or above 1 less it, decide nothing.
SMALLEST_RATE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often decisions fall how, over images about which they are asked.

    Attributes:
        options: (L, K) share of every option of every unit; 0 where a unit is never asked.
        exits: (E,) share of the images that leave, of those that come to an exit.
    """

    options: Tensor
    exits: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Freezing:
    """What is no longer decided, and what that costs on the images that it was chosen on.

    Attributes:
        units: frozen ones with the option that all images take.
        exits: at which no one leaves any more.
        rates: of the frozen units: the share of images that took that option before.
        exit_rates: of these exits: the share of images that left there.
        num_images: on which it is measured; 0 where nothing had to be.
        accuracy_before: share of images that are right.
        accuracy_after: the same with everything frozen.
        agreement: share of images with the same class.
        macs_before: mean MACs per image by the price list, routers included.
        macs_after: the same, without the routers of frozen units.
    """

    units: dict[int, int] = field(default_factory=dict)
    exits: tuple[int, ...] = ()
    rates: dict[int, float] = field(default_factory=dict)
    exit_rates: dict[int, float] = field(default_factory=dict)
    num_images: int = 0
    accuracy_before: float = 0.0
    accuracy_after: float = 0.0
    agreement: float = 1.0
    macs_before: float = 0.0
    macs_after: float = 0.0


def check_segments(count: int | None) -> None:
    """Return if a network can be cut into so many segments.

    Raises:
        ExportError: for fewer than one.
    """
    if count is not None and count < 1:
        raise ExportError(f"segments must be 1 or more, got {count}; 1 freezes every decision")


def choose_frozen(rates: Rates, num_segments: int | None) -> tuple[dict[int, int], tuple[int, ...]]:
    """Return the units to freeze, each with its most frequent option, and the exits to leave out.

    Units with a keep rate beyond `SMALLEST_RATE` are frozen anyway. Where more decisions remain than fit,
    those follow that the fewest images decide otherwise.

    Args:
        rates: of the network.
        num_segments: that an image runs at most; None keeps all exits, and leaves units the rest of
            `DEFAULT_SEGMENTS`.
    """
    largest = rates.options.amax(dim=1)
    units = {
        unit: int(rates.options[unit].argmax())
        for unit, share in enumerate(largest.tolist())
        if share > 1 - SMALLEST_RATE or share == 0
    }
    others = [(1 - share, "unit", unit) for unit, share in enumerate(largest.tolist()) if unit not in units]
    leaving = [(share, "exit", index) for index, share in enumerate(rates.exits.tolist())]
    room = (DEFAULT_SEGMENTS if num_segments is None else num_segments) - 1
    if num_segments is None:
        room, candidates = max(room - len(leaving), 0), others
    else:
        candidates = others + leaving
    gone = sorted(candidates)[: max(len(candidates) - room, 0)]
    units |= {place: int(rates.options[place].argmax()) for _, kind, place in gone if kind == "unit"}
    return units, tuple(sorted(place for _, kind, place in gone if kind == "exit"))


@dataclass(frozen=True, slots=True)
class FrozenSampler:
    """Takes one option in frozen units, and arg-max in all others.

    Args:
        units: frozen ones with their options.
    """

    units: dict[int, int]

    def at(self, unit: int) -> Sampler:
        """Return the sampler of a unit."""
        option = self.units.get(unit)
        if option is None:
            return argmax

        def frozen(logits: Tensor) -> Sample:
            weights = torch.zeros_like(logits)
            weights[:, option] = 1
            return Sample(weights, weights)

        return frozen

    def __call__(self, logits: Tensor) -> Sample:
        """Return what units do that are not frozen."""
        return argmax(logits)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a network says about N images, one row for each."""

    classes: Tensor
    labels: Tensor
    weights: Tensor
    asked: Tensor
    exits: Tensor | None
    macs: Tensor
    router_macs: Tensor


def freeze(
    network: DynamicNetwork,
    batches: Callable[[], Iterable[Batch]],
    cost: CostModel,
    rule: ExitRule | None,
    num_segments: int | None,
) -> Freezing:
    """Return what of a network is frozen so that an image runs few segments, with what that costs, measured.

    Args:
        network: in evaluation mode.
        batches: images with labels that nothing is reported on, anew at every call.
        cost: price list.
        rule: where images leave, or None.
        num_segments: as `choose_frozen` takes it.
    """
    before = _look(network, batches(), cost, rule, argmax)
    units, exits = choose_frozen(_rates(before, network.num_exits), num_segments)
    after = _look(network, batches(), cost, without_exits(rule, exits), FrozenSampler(units))
    rates = _rates(before, network.num_exits)
    spared = after.router_macs[:, sorted(units)].sum(dim=1)
    return Freezing(
        units=dict(sorted(units.items())),
        exits=exits,
        rates={unit: rates.options[unit, option].item() for unit, option in sorted(units.items())},
        exit_rates={index: rates.exits[index].item() for index in exits},
        num_images=len(before.labels),
        accuracy_before=(before.classes == before.labels).double().mean().item(),
        accuracy_after=(after.classes == after.labels).double().mean().item(),
        agreement=(before.classes == after.classes).double().mean().item(),
        macs_before=before.macs.mean().item(),
        macs_after=(after.macs - spared).mean().item(),
    )


def without_exits(rule: ExitRule | None, exits: Sequence[int]) -> ExitRule | None:
    """Return a rule by which no one leaves at some exits."""
    if rule is None or not exits:
        return rule
    kept = [float("inf") if index in exits else threshold for index, threshold in enumerate(rule.thresholds)]
    return ExitRule(thresholds=kept, criterion=rule.criterion, temperatures=rule.temperatures)


def _look(
    network: DynamicNetwork, batches: Iterable[Batch], cost: CostModel, rule: ExitRule | None, sampler: Any
) -> _Seen:
    parts: list[list[Tensor]] = []
    with torch.inference_mode():
        for batch in batches:
            output = network(batch.images, sampler=sampler, rule=rule)
            decisions = output.decisions
            asked = torch.ones(decisions.weights.shape[:2]) if decisions.asked is None else decisions.asked
            exits = torch.ones(len(batch.labels), 1) if decisions.exits is None else decisions.exits
            macs = cost.per_sample(decisions).double()
            parts.append(
                [
                    output.logits.argmax(dim=1),
                    batch.labels,
                    decisions.weights,
                    asked.float(),
                    exits.float(),
                    macs,
                    asked.double() * cost.routers.double() if len(cost.routers) else asked.double(),
                ]
            )
    return _Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rates(seen: _Seen, num_exits: int) -> Rates:
    """Return the shares among images that come to a unit or an exit."""
    weights = seen.weights * seen.asked.unsqueeze(2)
    options = weights.sum(dim=0) / seen.asked.sum(dim=0).clamp_min(1).unsqueeze(1)
    assert seen.exits is not None
    left = seen.exits.sum(dim=0)
    there = left.flip(0).cumsum(0).flip(0).clamp_min(1)
    return Rates(options=options, exits=(left / there)[: num_exits - 1])
