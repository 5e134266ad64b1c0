"""Networks with early exits, computed from one exit to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sidestep.errors import ExecutionError
from sidestep.layers.rows import take_rows
from sidestep.layers.unit import Execute
from sidestep.networks.network import DynamicNetwork, masked
from sidestep.routing.exit_rule import Certainty, ExitRule
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, argmax
from sidestep.types import Decisions, RoutedOutput

# Nested tuples, lists and dicts of tensors, each with one row per image.
State = Any


class Steps(Protocol):
    """The way through a network, exit by exit: `begin`, then `advance` and `classify` for the exits in order.

    Where one stops, nothing has been computed that only later exits need. Steps leave the state that they are
    given as it was, and rows of a state know nothing of each other in evaluation mode.
    """

    def begin(self, images: Tensor) -> State:
        """Return the state in front of the first exit, given (B, 3, H, W) images."""
        ...

    def advance(self, index: int, state: State) -> State:
        """Return the state at exit `index`, given that of the exit before, or of `begin`."""
        ...

    def classify(self, index: int, state: State) -> Tensor:
        """Return the (B, C) logits of exit `index`, given what `advance` returned for it."""
        ...

    def take(self, state: State, rows: Tensor) -> State:
        """Return the state of some of the images, by index."""
        ...

    def decisions(self, state: State) -> Decisions:
        """Return what was decided about the units so far, (B, l, K)."""
        ...


class ExitNetwork(DynamicNetwork):
    """A network with E exits: what an exit needs is computed when the exit is reached, and not before.

    A network of exits alone is its own `Steps`; subclasses define `begin`, `advance` and `classify`.

    Attributes:
        num_exits: number E of exits.
    """

    num_exits: int

    def __init__(self) -> None:
        super().__init__()
        self.router = None

    def begin(self, images: Tensor) -> State:
        """Return the state in front of the first exit, given (B, 3, H, W) images."""
        raise NotImplementedError

    def advance(self, index: int, state: State) -> State:
        """Return the state at exit `index`, given that of the exit before, or of `begin`."""
        raise NotImplementedError

    def classify(self, index: int, state: State) -> Tensor:
        """Return the (B, C) logits of exit `index`, given what `advance` returned for it."""
        raise NotImplementedError

    def take(self, state: State, rows: Tensor) -> State:
        """Return the state of some of the images, by index."""
        return take_rows(state, rows)

    def decisions(self, state: State) -> Decisions:
        """Return decisions about no units: everything on the way to an exit is computed."""
        first = next(leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
        return Decisions(weights=torch.zeros(len(first), 0, 2, device=first.device))

    def parts(self) -> dict[str, nn.Module]:
        return {"blocks": self}

    @property
    def static(self) -> nn.Module:
        return _LastExit(self)

    @property
    def units_before(self) -> Sequence[int]:
        """Return the number of units in front of every exit."""
        return [0] * self.num_exits

    def steps(self, *, sampler: Sampler, router: Router | None, execute: Execute) -> Steps:
        """Return the way through the network under a sampler, perhaps another router, and an execution."""
        return self

    def forward(
        self,
        images: Tensor,
        *,
        sampler: Sampler = argmax,
        router: Router | None = None,
        execute: Execute = masked,
        rule: ExitRule | None = None,
        cascade: bool = False,
    ) -> RoutedOutput:
        """Return the class scores of (B, 3, H, W) images at the exits where they leave.

        Args:
            images: normalised pixels.
            sampler: how logits of routers become weights.
            router: asked instead of the network's own router.
            execute: how units are run.
            rule: where images leave; without one all leave at the last exit.
            cascade: whether images that have left are computed no further, so that they save time. Otherwise
                everything is computed, the reference, and all `exit_logits` are returned.

        Raises:
            ExecutionError: for a cascade in training mode or without a rule, or a rule for other exits.
        """
        if rule is not None and rule.num_exits != self.num_exits:
            raise ExecutionError(
                f"an exit rule must have {self.num_exits - 1} thresholds for {self.num_exits} exits, got "
                f"{rule.num_exits - 1}"
            )
        steps = self.steps(sampler=sampler, router=router, execute=execute)
        if not cascade:
            return self._through(images, steps, rule)
        if self.training or rule is None:
            raise ExecutionError(
                "cascade execution needs evaluation mode and an exit rule, got "
                f"{'training mode' if self.training else 'no rule'}; "
                "call network.eval() and calibrate the run, or run masked"
            )
        return self._cascade(images, steps, rule)

    def _through(self, images: Tensor, steps: Steps, rule: ExitRule | None) -> RoutedOutput:
        """Return the output with all exits computed."""
        state, logits = steps.begin(images), []
        for index in range(self.num_exits):
            state = steps.advance(index, state)
            logits.append(steps.classify(index, state))
        exit_logits = torch.stack(logits)
        exits = self._leaving(exit_logits, rule)
        decided = steps.decisions(state)
        if rule is not None:
            before = torch.tensor(self.units_before, device=exits.device)[exits]
            place = torch.arange(decided.weights.shape[1], device=exits.device)
            decided = _reached(decided, (place < before.unsqueeze(1)).float())
        rows = torch.arange(len(exits), device=exits.device)
        return RoutedOutput(
            logits=exit_logits[exits, rows],
            decisions=replace(decided, exits=F.one_hot(exits, self.num_exits).float()),
            exit_logits=exit_logits,
        )

    def _leaving(self, exit_logits: Tensor, rule: ExitRule | None) -> Tensor:
        """Return the (B,) exits at which images leave."""
        last = self.num_exits - 1
        exits = torch.full((exit_logits.shape[1],), last, device=exit_logits.device)
        if rule is None:
            return exits
        seen: Certainty | None = None
        for index, logits in enumerate(exit_logits.detach()[:-1]):
            seen = rule.certainty(index, logits, seen)
            exits = torch.where((exits == last) & rule.leaves(index, seen), index, exits)
        return exits

    def _cascade(self, images: Tensor, steps: Steps, rule: ExitRule) -> RoutedOutput:
        """Return the output with nothing computed for images that have left."""
        state, seen = steps.begin(images), None
        rows = torch.arange(images.shape[0], device=images.device)
        left: list[_Left] = []
        for index in range(self.num_exits):
            state = steps.advance(index, state)
            logits = steps.classify(index, state)
            seen = rule.certainty(index, logits, seen)
            leaves = rule.leaves(index, seen)
            over, alive = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            if not len(alive):
                left.append(_Left(rows=rows, logits=logits, exit=index, decided=steps.decisions(state)))
                break
            if len(over):
                decided = steps.decisions(steps.take(state, over))
                left.append(_Left(rows=rows[over], logits=logits[over], exit=index, decided=decided))
                rows, state, seen = rows[alive], steps.take(state, alive), seen.take(alive)
        return self._joined(left)

    def _joined(self, parts: Sequence[_Left]) -> RoutedOutput:
        """Return all images in the order of the batch."""
        order = torch.cat([part.rows for part in parts]).argsort()
        exits = torch.cat([torch.full_like(part.rows, part.exit) for part in parts])[order]
        decided = [_padded(part.decided, self.units_before[-1]) for part in parts]
        weights = torch.cat([decisions.weights for decisions in decided])[order]
        asked = torch.cat([d.asked for d in decided if d.asked is not None])[order]
        return RoutedOutput(
            logits=torch.cat([part.logits for part in parts])[order],
            decisions=Decisions(weights=weights, asked=asked, exits=F.one_hot(exits, self.num_exits).float()),
        )


class _LastExit(nn.Module):
    """The way to the last exit, where no other is asked."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        state = network.begin(images)
        for index in range(network.num_exits):
            state = network.advance(index, state)
        return network.classify(network.num_exits - 1, state)


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


def _padded(decided: Decisions, num_units: int) -> Decisions:
    """Return decisions about all units of a network, of which the later ones were not reached."""
    missing = num_units - decided.weights.shape[1]
    reached = torch.ones(decided.weights.shape[:2], device=decided.weights.device)
    return Decisions(weights=F.pad(decided.weights, (0, 0, 0, missing)), asked=F.pad(reached, (0, missing)))
