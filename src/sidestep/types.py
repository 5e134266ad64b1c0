"""The nouns that every room shares: decisions, outputs, costs, and a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.errors import ExecutionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What a network chose: one weight per image, unit and option.

    Attributes:
        weights: (B, L, K), each row over K sums to 1, or to 0 where the image had left at an exit before;
            one-hot when the decision is hard. Options rise in cost: option 0 is the cheapest, and index 1 of
            a gate (K = 2) means *execute*. A network of exits alone has L = 0.
        logits: (B, L, K) before any noise, or None where nothing was asked (a static network).
        relaxed: (B, L, K) the soft weights behind hard ones, for losses that need a gradient through the
            path (the rank loss of RDI-Net); equal to `weights` when these are soft.
        asked: (B, L) share of every router's price that was paid, in [0, 1], or None where all were asked in
            full. A stage that has halted asks no more.
        exits: (B, E) one-hot exit at which every image leaves, or None for a network without early exits.
    """

    weights: Tensor
    logits: Tensor | None = None
    relaxed: Tensor | None = None
    asked: Tensor | None = None
    exits: Tensor | None = None

    def execution(self) -> Tensor:
        """Return the (B, L) weight of executing a unit: all options but the cheapest."""
        return _execution(self.weights)

    def relaxed_execution(self) -> Tensor:
        """Return the (B, L) soft weight of executing a unit, differentiable even when decisions are hard."""
        return _execution(self.weights if self.relaxed is None else self.relaxed)

    def keep_rates(self) -> Tensor:
        """Return the (L,) mean execution weight of every unit, in [0, 1]."""
        return self.execution().mean(dim=0)

    def paths(self) -> Tensor:
        """Return the (B, L) index of the option with the largest weight."""
        return self.weights.argmax(dim=2)


def _execution(weights: Tensor) -> Tensor:
    return weights[..., 1] if weights.shape[-1] == 2 else weights[..., 1:].sum(dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedOutput:
    """What every model returns, in training and in evaluation.

    Attributes:
        logits: (B, C) class scores.
        decisions: what was executed to get them.
        exit_logits: (E, B, C) class scores of early exits, or None.
        ponder: (B, S) ponder cost N + R of every stage of a halting network, for SACT its mean over
            positions; its gradient flows through the remainder R alone. None elsewhere.
        temperatures: (B,) that the exit at which an image left divides its logits by, or None where none
            divides.
    """

    logits: Tensor
    decisions: Decisions
    exit_logits: Tensor | None = None
    ponder: Tensor | None = None
    temperatures: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """Return (B, C) softmax(logits / temperature), by which an exit decides whether an image leaves."""
        logits = self.logits.float()
        return (logits if self.temperatures is None else logits / self.temperatures.unsqueeze(1)).softmax(1)


# MACs (one multiply-add counts once), or milliseconds.
Unit = Literal["MACs", "ms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The price list of a network for one image.

    Attributes:
        fixed: stem and head, paid by every image.
        options: (L, K) price of every option of every unit, shortcuts included.
        routers: (L,) price of asking the router at every unit.
        exits: (E,) price of leaving at every exit, on top of units and routers: the heads up to it, and in a
            network of exits alone everything that was computed for them. None without early exits.
        exit_units: (E,) number of units in front of every exit, or None.
        static: price of the static network where that is not everything: a cascade's last member. None
            elsewhere.
        unit: of all prices.
    """

    fixed: float
    options: Tensor
    routers: Tensor
    exits: Tensor | None = None
    exit_units: Tensor | None = None
    static: float | None = None
    unit: Unit = "MACs"

    @property
    def full(self) -> float:
        """Return the price of the static network: every unit at its dearest option, all exits, no routers.

        For a cascade that of its last member.
        """
        return float(self._full())

    def to(self, device: torch.device | str) -> CostModel:
        """Return the same price list on a device, where no step has to fetch it."""
        return replace(
            self,
            options=self.options.to(device),
            routers=self.routers.to(device),
            exits=None if self.exits is None else self.exits.to(device),
            exit_units=None if self.exit_units is None else self.exit_units.to(device),
        )

    def per_sample(self, decisions: Decisions, *, routers: bool = True) -> Tensor:
        """Return the (B,) price of every image, differentiable in the decision weights.

        Args:
            decisions: weights (B, L, K) that match this price list.
            routers: whether asking the routers is counted, as far as they were asked.
        """
        weights = decisions.weights.float()
        # Sums of products and no matrix products, which autocast would round to bfloat16: by up to 0.4 %.
        spent = (weights * self.options.to(weights)).sum(dim=(1, 2)) + self.fixed
        if self.exits is not None:
            prices = self.exits.to(weights)
            spent = spent + (prices[-1] if decisions.exits is None else (decisions.exits * prices).sum(dim=1))
        if not routers:
            return spent
        if decisions.asked is None:
            return spent + self.routers.to(weights).sum()
        return spent + (decisions.asked.float() * self.routers.to(weights)).sum(dim=1)

    def at_exits(self, decisions: Decisions) -> Tensor:
        """Return the (B, E) price that every image would have at each exit, routers included.

        Args:
            decisions: of a forward pass through all exits.

        Raises:
            ExecutionError: for a network without early exits.
        """
        if self.exits is None or self.exit_units is None:
            raise ExecutionError("prices of exits need a network with early exits, got one without")
        weights = decisions.weights.float()
        units = (weights * self.options.to(weights)).sum(dim=2)
        asked = torch.ones_like(units) if decisions.asked is None else decisions.asked.float()
        spent = (units + asked * self.routers.to(weights)).cumsum(dim=1)
        before = torch.cat([spent.new_zeros(len(spent), 1), spent], dim=1)[:, self.exit_units]
        return before + self.exits.to(weights) + self.fixed

    def fraction(self, decisions: Decisions) -> Tensor:
        """Return the (B,) price of every image, routers included, as a fraction of the static network's."""
        spent = self.per_sample(decisions)
        return spent / self._full().to(spent)

    def _full(self) -> Tensor:
        """Return `full` on the device of the prices: a number would make a step wait for a GPU."""
        if self.static is not None:
            return self.options.new_tensor(self.static, dtype=torch.float64)
        dearest = self.options[:, -1].sum(dtype=torch.float64) + self.fixed
        return dearest if self.exits is None else dearest + self.exits[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step sees.

    Attributes:
        images: (B, 3, H, W) normalised pixels.
        labels: (B,) class indices.
        statistics: (B, S) image statistics of the raw pixels (histograms), or None when no loss wants them.
        teacher_logits: (B, C) class scores of the static origin, or None without distillation.
        greedy: what the network does with the most probable decisions, or None when no loss wants it.
        views: number of augmented views of every image; those of one image are neighbours.
        partners: (B,) classes of the images that these are mixed with, or None where nothing is mixed.
        share: (B,) share of an image's own class, in [0, 1], or None likewise.
        learners: the part of a network that alone learns from it, "routers", or "blocks" for all others; None
            is every part that learns.
        budget: scalar that the images are run with, of a network that is given its budget; None elsewhere.
    """

    images: Tensor
    labels: Tensor
    statistics: Tensor | None = None
    teacher_logits: Tensor | None = None
    greedy: RoutedOutput | None = None
    views: int = 1
    partners: Tensor | None = None
    share: Tensor | None = None
    learners: str | None = None
    budget: Tensor | None = None

    def targets(self, num_classes: int) -> Tensor:
        """Return what a cross-entropy takes: (B,) classes, or (B, C) probabilities where images are mixed."""
        if self.partners is None or self.share is None:
            return self.labels
        own, other = (F.one_hot(classes, num_classes).float() for classes in (self.labels, self.partners))
        return torch.lerp(other, own, self.share.unsqueeze(1))
