"""The forward pass as a visitor: ask, sample, run the unit; classify at exits, perhaps let images leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.execution.execution import Execution
from sidestep.execution.parts import run_part
from sidestep.layers.rows import take_rows
from sidestep.layers.unit import Unit
from sidestep.networks.walk import ForwardPass
from sidestep.routing.exit_rule import Certainty, ExitRule
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, UnitSampler
from sidestep.types import Decisions, RoutedOutput


class Routed(Protocol):
    """What a forward pass has to know of a network beside its way."""

    @property
    def num_options(self) -> int: ...

    @property
    def units_before(self) -> Sequence[int]: ...

    @property
    def num_exits(self) -> int: ...

    @property
    def has_early_exits(self) -> bool: ...

    @property
    def lets_leave(self) -> bool: ...

    def answer(self, index: int, logits: Tensor, said: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


class Forward(ForwardPass):
    """A forward pass in which everything up to the last exit is computed.

    Args:
        network: that is walked through.
        router: who is asked; None executes every unit.
        sampler: how logits become weights.
        execution: how units are run.
        rule: at which exit an image's answer is taken; None takes the last one's.

    Attributes:
        choices: logits, weights and relaxed weights at every unit so far, (B, K) each; none without a router.
        num_units: units so far.
        exit_logits: (B, C) of every exit so far.
        said: what a cascade's members so far have said together, or None.
    """

    def __init__(
        self,
        network: Routed,
        router: Router | None,
        sampler: Sampler,
        execution: Execution,
        rule: ExitRule | None,
    ) -> None:
        super().__init__(router)
        self.network = network
        self.sampler = sampler
        # Asked once: for one image a look for every unit is a part of the time that can be seen.
        self.sampler_of = sampler.at if isinstance(sampler, UnitSampler) else None
        self.execution = execution
        self.rule = rule
        self.choices: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_units = 0
        self.exit_logits: list[Tensor] = []
        self.said: Tensor | None = None

    def at_unit(self, index: int, unit: Unit) -> None:
        self.num_units += 1
        if self.router is None:
            self.x = self.execution.execute(unit, self.x)
            return
        logits = self.ask(index)
        sample = (self.sampler if self.sampler_of is None else self.sampler_of(index))(logits)
        if sample.chosen is None or sample.others is None:
            self.x = self.execution.run(unit, self.x, sample.weights)
        else:
            run = partial(self.execution.run, unit)
            self.x = run_part(unit, run, self.x, sample.weights, sample.chosen, sample.others)
        self.choices.append((logits, sample.weights, sample.relaxed))

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        self.exit_logits.append(self.answer(index, classify))
        return True

    def answer(self, index: int, classify: Callable[[Any], Any]) -> Tensor:
        """Return the (B, C) logits with which images would leave at an exit."""
        logits, self.said = self.network.answer(index, classify(self.x), self.said)
        if self.router is not None:
            self.state = self.router.see(logits, self.state)
        return logits

    def decisions(self, choices: Sequence[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> Decisions:
        """Return what was decided about the units so far.

        Args:
            choices: at every unit, as the attribute.
            like: its first dimension is the batch.
        """
        if choices:
            logits, weights, relaxed = (torch.stack(parts, dim=1) for parts in zip(*choices, strict=True))
            return Decisions(weights=weights, logits=logits, relaxed=relaxed)
        executed = torch.zeros(self.num_units, self.network.num_options, device=like.device)
        executed[:, -1] = 1
        return Decisions(weights=executed.expand(like.shape[0], -1, -1))

    def output(self) -> RoutedOutput:
        """Return the output of the network."""
        decided = self.decisions(self.choices, self.exit_logits[-1])
        if not self.network.has_early_exits:
            return RoutedOutput(logits=self.exit_logits[-1], decisions=decided)
        return answers_by(self.rule, torch.stack(self.exit_logits), decided, self.network)


def answers_by(
    rule: ExitRule | None, exit_logits: Tensor, decided: Decisions, network: Routed
) -> RoutedOutput:
    """Return the answers of a network of which everything was computed, each from the exit that a rule says.

    Args:
        rule: at which exit an image's answer is taken; None takes the last one's.
        exit_logits: (E, B, C) of all exits.
        decided: what was decided about all units.
        network: with early exits, that has said so.
    """
    exits = _leaving(rule, exit_logits)
    if rule is not None:
        before = torch.tensor(network.units_before, device=exits.device)[exits]
        place = torch.arange(decided.weights.shape[1], device=exits.device)
        decided = _reached(decided, (place < before.unsqueeze(1)).float())
    rows = torch.arange(len(exits), device=exits.device)
    taken = F.one_hot(exits, network.num_exits).float() if network.lets_leave else None
    return RoutedOutput(
        logits=exit_logits[exits, rows],
        decisions=replace(decided, exits=taken),
        exit_logits=exit_logits,
        temperatures=None if rule is None else rule.temperatures_of(exits),
    )


def _leaving(rule: ExitRule | None, exit_logits: Tensor) -> Tensor:
    """Return the (B,) exits at which images leave."""
    last = len(exit_logits) - 1
    exits = torch.full((exit_logits.shape[1],), last, device=exit_logits.device)
    if rule is None:
        return exits
    seen: Certainty | None = None
    for index, logits in enumerate(exit_logits.detach()[:-1]):
        seen = rule.certainty(index, logits, seen)
        exits = torch.where((exits == last) & rule.leaves(index, seen), index, exits)
    return exits


class LeavingForward(Forward):
    """A forward pass in which nothing more is computed for images that have left at an exit.

    Args:
        network: with early exits.
        router: who is asked; None executes every unit.
        sampler: how logits become weights.
        execution: how units are run.
        rule: where images leave.
    """

    rule: ExitRule

    def __init__(
        self, network: Routed, router: Router | None, sampler: Sampler, execution: Execution, rule: ExitRule
    ) -> None:
        super().__init__(network, router, sampler, execution, rule)
        self.left: list[_Left] = []
        self.seen: Certainty | None = None

    def begin(self, stem: Callable[[Any], Any], images: Any) -> None:
        super().begin(stem, images)
        self.rows = torch.arange(images.shape[0], device=images.device)

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        logits = self.answer(index, classify)
        self.seen = self.rule.certainty(index, logits, self.seen)
        leaves = self.leaves(index, self.seen)
        over, alive = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
        if not len(alive):
            self._leave(index, self.rows, logits, self.choices)
            return False
        if len(over):
            self._leave(index, self.rows[over], logits[over], take_rows(self.choices, over))
            self._keep(alive)
        return True

    def leaves(self, index: int, seen: Certainty) -> Tensor:
        """Return booleans, one for every image on the way, true for those that leave at exit `index`."""
        return self.rule.leaves(index, seen)

    def _leave(self, index: int, rows: Tensor, logits: Tensor, choices: list[Any]) -> None:
        decided = self.decisions(choices, logits)
        self.left.append(_Left(rows=rows, logits=logits, exit=index, decided=decided))

    def _keep(self, alive: Tensor) -> None:
        """Go on with some of the images, by index."""
        assert self.seen is not None  # set by the exit that asks for it
        self.rows, self.seen = self.rows[alive], self.seen.take(alive)
        self.images, self.x = take_rows((self.images, self.x), alive)
        self.said, self.choices = take_rows((self.said, self.choices), alive)
        if self.router is not None:
            self.state = self.router.take(self.state, alive)

    def output(self) -> RoutedOutput:
        """Return all images in the order of the batch."""
        order = torch.cat([part.rows for part in self.left]).argsort()
        exits = torch.cat([torch.full_like(part.rows, part.exit) for part in self.left])[order]
        decided = [padded(part.decided, self.network.units_before[-1]) for part in self.left]
        weights = torch.cat([decisions.weights for decisions in decided])[order]
        asked = torch.cat([d.asked for d in decided if d.asked is not None])[order]
        taken = F.one_hot(exits, self.network.num_exits).float()
        return RoutedOutput(
            logits=torch.cat([part.logits for part in self.left])[order],
            decisions=Decisions(weights=weights, asked=asked, exits=taken),
            temperatures=self.rule.temperatures_of(exits),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """Images that leave at an exit: their places in the batch, their logits, what was decided for them."""

    rows: Tensor
    logits: Tensor
    exit: int
    decided: Decisions


def _reached(decided: Decisions, reached: Tensor) -> Decisions:
    """Return decisions of which only units that were reached count, by (B, L) zeros and ones."""
    return replace(decided, weights=decided.weights * reached.unsqueeze(2), asked=reached)


def padded(decided: Decisions, num_units: int) -> Decisions:
    """Return decisions about all units of a network, of which the later ones were not reached."""
    missing = num_units - decided.weights.shape[1]
    reached = torch.ones(decided.weights.shape[:2], device=decided.weights.device)
    return Decisions(weights=F.pad(decided.weights, (0, 0, 0, missing)), asked=F.pad(reached, (0, missing)))
