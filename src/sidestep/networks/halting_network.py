"""A backbone whose stages halt: the dynamic network of ACT and SACT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.execution.execution import Execution, masked
from sidestep.layers.unit import Unit
from sidestep.networks.routed import RoutedNetwork
from sidestep.networks.walk import ForwardPass, walk
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.halting_units import Halting, HaltingRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler
from sidestep.types import Decisions, RoutedOutput


class HaltingNetwork(RoutedNetwork):
    """Runs the units of a stage until it halts, and goes on with the weighted mean of their outputs.

    A halting unit scores the output of every unit but the last of a stage; once the scores of an image
    (ACT) or of a position (SACT) add up to 1 - eps, no more units of the stage run there. With p_l of
    `Halting` and x_l the output of unit l::

        output of a stage = sum_l p_l x_l

    The first unit of a stage always runs, and stages know nothing of each other. A position that has halted
    keeps its x_l while its neighbours go on, which see it. Nothing is drawn, in training neither, so that
    samplers have no say. Where a router is given to a forward pass, it decides instead of the halting units,
    and stages end with their last unit's output, as in any `RoutedNetwork` (training with everything
    executed).

    In the decisions, executing unit l weighs the share of the unit's MACs that was needed: 1 or 0 for ACT,
    for SACT the share at the positions that ran, where the first of two 3x3 convolutions is counted one pixel
    around them as well (`Unit.share_of_macs`). So the cost book, which is linear in the weights, counts
    positions exactly. `asked` says the same of the halting units.

    Masked execution computes every unit for every image, and what runs on after the end has weight 0; any
    other one leaves an image that has halted everywhere out of the rest of its stage. Positions save no time.

    Args:
        backbone: the static network.
        router: its halting units.
    """

    def __init__(self, backbone: Backbone, router: HaltingRouter) -> None:
        super().__init__(backbone, router)

    @property
    def chooses_options(self) -> bool:
        return False

    def visitor(
        self, router: Router | None, sampler: Sampler, execution: Execution, rule: ExitRule | None
    ) -> ForwardPass:
        """Return the visitor of a forward pass, in which stages halt unless another router is given."""
        if router is not self.router:
            return super().visitor(router, sampler, execution, rule)
        return self._halting(execution)

    def ponder_map(self, images: Tensor) -> Tensor:
        """Return the (B, H, W) sum over stages of the ponder cost N + R under every pixel of the images.

        For ACT it is the same under all pixels of an image.

        Args:
            images: (B, 3, H, W) normalised pixels.
        """
        forward, size = self._halting(masked), images.shape[2:]
        walk(self, images, forward)
        return torch.stack([F.interpolate(stage.ponder, size)[:, 0] for stage in forward.ended]).sum(dim=0)

    def _halting(self, execution: Execution) -> _HaltingForward:
        halting: Any = self.router
        return _HaltingForward(halting, self.units, execution)


class _Ended(NamedTuple):
    """What is known of images behind a stage, one row per image.

    rows: (A,) their places in the batch. mean: (A, C, H, W) output of the stage. ponder: (A, 1, h, w) cost
    N + R. executed, asked: (A, L) shares of the prices of the stage's L units and halting units.
    """

    rows: Tensor
    mean: Tensor
    ponder: Tensor
    executed: Tensor
    asked: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Where a stage stands behind l units, one row for every image that is still computed.

    rows: (A,) their places in the batch. x: (A, C, H, W) output of the last unit. mean: weighted sum of all
    outputs so far. executed: (A, l), asked: (A, l + 1) shares, the latter beginning with an unasked opener.
    """

    rows: Tensor
    x: Tensor
    mean: Tensor
    halting: Halting
    executed: Tensor
    asked: Tensor

    @classmethod
    def begin(cls, x: Tensor) -> _Stage:
        batch = x.shape[0]
        return cls(
            rows=torch.arange(batch, device=x.device),
            x=x,
            mean=x.new_zeros(batch, 1, 1, 1),
            halting=Halting.begin(batch, x.device),
            executed=torch.zeros(batch, 0, device=x.device),
            asked=torch.zeros(batch, 1, device=x.device),
        )

    def take(self, which: Tensor) -> _Stage:
        """Return the same for some of the images, by index."""
        return _Stage(
            rows=self.rows[which],
            x=self.x[which],
            mean=self.mean[which],
            halting=self.halting.take(which),
            executed=self.executed[which],
            asked=self.asked[which],
        )

    def end(self, num_units: int) -> _Ended:
        """Return the result; units behind the last computed one have cost nothing."""
        missing = num_units - self.executed.shape[1]
        return _Ended(
            rows=self.rows,
            mean=self.mean,
            ponder=self.halting.ponder(),
            executed=F.pad(self.executed, (0, missing)),
            asked=F.pad(self.asked, (0, num_units - self.asked.shape[1])),
        )


class _HaltingForward(ForwardPass):
    """A forward pass whose stages halt; every stage takes the mean of the one before it.

    Args:
        halting: scores units.
        units: of the network.
        execution: how units are run.

    Attributes:
        ended: what came out of every stage so far.
    """

    def __init__(self, halting: HaltingRouter, units: Sequence[Unit], execution: Execution) -> None:
        super().__init__(halting)
        self.halting = halting
        self.execution = execution
        self.stages = [unit.stage for unit in units]
        self.ended: list[_Ended] = []
        self.logits: Tensor | None = None

    def at_unit(self, index: int, unit: Unit) -> None:
        stages = self.stages
        if index == 0 or stages[index - 1] != unit.stage:
            self.stage, self.halted, self.parts = _Stage.begin(self.x), False, list[_Ended]()
        elif not self.execution.computes_all:
            self._leave_out_halted(unit)
        last = index + 1 == len(stages) or stages[index + 1] != unit.stage
        if not self.halted:
            self._advance(index, unit, last=last)
        if last:
            self.parts.append(self.stage.end(stages.count(unit.stage)))
            self.ended.append(_joined(self.parts))
            self.x = self.ended[-1].mean

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        self.logits = classify(self.x)
        return False

    def output(self) -> RoutedOutput:
        """Return the class scores, what was executed, and the ponder cost of stages."""
        assert self.logits is not None  # the head is the last stop of every walk
        executed = torch.cat([stage.executed for stage in self.ended], dim=1)
        return RoutedOutput(
            logits=self.logits,
            decisions=Decisions(
                weights=torch.stack([1 - executed, executed], dim=2),
                asked=torch.cat([stage.asked for stage in self.ended], dim=1),
            ),
            ponder=torch.stack([stage.ponder.mean(dim=(1, 2, 3)) for stage in self.ended], dim=1),
        )

    def _leave_out_halted(self, unit: Unit) -> None:
        """Take images that have halted everywhere out of the rest of the stage."""
        running = self.stage.halting.running.flatten(1).any(dim=1)
        over, alive = (~running).nonzero().squeeze(1), running.nonzero().squeeze(1)
        self.halted = not len(alive)
        if len(over) and len(alive):
            self.parts.append(self.stage.take(over).end(self.stages.count(unit.stage)))
            self.stage = self.stage.take(alive)

    def _advance(self, index: int, unit: Unit, *, last: bool) -> None:
        """Go behind one more unit, whose output is scored in front of the next one of its stage."""
        stage, running = self.stage, self.stage.halting.running
        x = self._computed(unit, stage.x)
        if self.halting.spatial and stage.executed.shape[1]:
            x = torch.where(running, x, stage.x)
        shares = stage.asked
        score = x.new_ones((), dtype=torch.float32)
        if not last:
            logits, _ = self.halting(index + 1, x, None)
            score = torch.sigmoid(logits.float())
            share = self.halting.share_of_macs(index + 1, running)
            shares = torch.cat([shares, share.unsqueeze(1)], dim=1)
        weight, behind = stage.halting.step(score, self.halting.eps)
        self.stage = replace(
            stage,
            x=x,
            mean=torch.addcmul(stage.mean, weight.to(x.dtype), x),
            halting=behind,
            executed=torch.cat([stage.executed, unit.share_of_macs(running).unsqueeze(1)], dim=1),
            asked=shares,
        )

    def _computed(self, unit: Unit, x: Tensor) -> Tensor:
        """Return the unit's output for images that all run it; there is nothing to blend."""
        if self.execution.computes_all:
            return unit.execute(x).to(x.dtype)
        weights = x.new_zeros(x.shape[0], 2)
        weights[:, 1] = 1
        return self.execution.run(unit, x, weights)


def _joined(parts: Sequence[_Ended]) -> _Ended:
    """Return all images in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    return _Ended(*(torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)))
