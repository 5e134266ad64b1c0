"""A backbone whose stages halt: the dynamic network of ACT and SACT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.errors import ExecutionError
from sidestep.layers.unit import Execute, Unit
from sidestep.networks.network import masked
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.halting_units import Halting, HaltingRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, argmax
from sidestep.types import Decisions, RoutedOutput


class HaltingNetwork(RoutedNetwork):
    """Runs the units of a stage until it halts, and goes on with the weighted mean of their outputs.

    A halting unit scores the output of every unit but the last of a stage; once the scores of an image
    (ACT) or of a position (SACT) add up to 1 - eps, no more units of the stage run there. With p_l of
    `Halting` and x_l the output of unit l::

        output of a stage = sum_l p_l x_l

    The first unit of a stage always runs, and stages know nothing of each other. A position that has halted
    keeps its x_l while its neighbours go on, which see it. Nothing is drawn, in training neither.

    In the decisions, executing unit l weighs the share of the unit's MACs that was needed: 1 or 0 for ACT,
    for SACT the share at the positions that ran, where the first of two 3x3 convolutions is counted one pixel
    around them as well (`Unit.share_of_macs`). So the cost book, which is linear in the weights, counts
    positions exactly. `asked` says the same of the halting units.
    """

    def forward(
        self,
        images: Tensor,
        *,
        sampler: Sampler = argmax,
        router: Router | None = None,
        execute: Execute = masked,
    ) -> RoutedOutput:
        """Return the class scores of (B, 3, H, W) images, what was executed, and the ponder cost of stages.

        Args:
            images: normalised pixels.
            sampler: has no say where stages halt.
            router: decides instead of the halting units, and stages end with their last unit's output, as in
                any `RoutedNetwork` (training with everything executed).
            execute: how units are run. `masked` computes every unit for every image, and what runs on after
                the end has weight 0; with any other, an image that has halted everywhere is left out of the
                rest of its stage. Positions save no time.
        """
        if router is not None or not isinstance(self.router, HaltingRouter):
            return super().forward(images, sampler=sampler, router=router, execute=execute)
        stages = _run_stages(self.backbone, self.router, images, execute)
        executed = torch.cat([stage.executed for stage in stages], dim=1)
        return RoutedOutput(
            logits=self.backbone.head(stages[-1].mean),
            decisions=Decisions(
                weights=torch.stack([1 - executed, executed], dim=2),
                asked=torch.cat([stage.asked for stage in stages], dim=1),
            ),
            ponder=torch.stack([stage.ponder.mean(dim=(1, 2, 3)) for stage in stages], dim=1),
        )

    def ponder_map(self, images: Tensor) -> Tensor:
        """Return the (B, H, W) sum over stages of the ponder cost N + R under every pixel of the images.

        For ACT it is the same under all pixels of an image.

        Args:
            images: (B, 3, H, W) normalised pixels.

        Raises:
            ExecutionError: for a network without halting units.
        """
        if not isinstance(self.router, HaltingRouter):
            raise ExecutionError(
                "a ponder map needs halting units, got none; build the network as act or sact"
            )
        stages = _run_stages(self.backbone, self.router, images, masked)
        size = images.shape[2:]
        return torch.stack([F.interpolate(stage.ponder, size)[:, 0] for stage in stages]).sum(dim=0)


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


def _run_stages(backbone: Backbone, halting: HaltingRouter, images: Tensor, execute: Execute) -> list[_Ended]:
    """Return what comes out of every stage, each of which takes the mean of the one before it."""
    x, stages = backbone.stem(images), []
    for _, units in groupby(enumerate(backbone.units), key=lambda item: item[1].stage):
        stages.append(_run_stage(list(units), x, halting, execute))
        x = stages[-1].mean
    return stages


def _run_stage(
    units: Sequence[tuple[int, Unit]], x: Tensor, halting: HaltingRouter, execute: Execute
) -> _Ended:
    """Return what comes out of a stage of units with their indices in the network."""
    stage, ended = _Stage.begin(x), []
    for place, (index, unit) in enumerate(units):
        if place and execute is not masked:
            running = stage.halting.running.flatten(1).any(dim=1)
            over, alive = (~running).nonzero().squeeze(1), running.nonzero().squeeze(1)
            if not len(alive):
                break
            if len(over):
                ended.append(stage.take(over).end(len(units)))
                stage = stage.take(alive)
        last = place == len(units) - 1
        stage = _advance(stage, unit, halting, execute, asked=None if last else index + 1)
    ended.append(stage.end(len(units)))
    return _joined(ended)


def _advance(
    stage: _Stage, unit: Unit, halting: HaltingRouter, execute: Execute, *, asked: int | None
) -> _Stage:
    """Return the stage behind one more unit, whose output is scored in front of unit `asked`."""
    running = stage.halting.running
    x = _computed(unit, stage.x, execute)
    if halting.spatial and stage.executed.shape[1]:
        x = torch.where(running, x, stage.x)
    shares = stage.asked
    score = x.new_ones((), dtype=torch.float32)
    if asked is not None:
        logits, _ = halting(asked, x, None)
        score = torch.sigmoid(logits.float())
        shares = torch.cat([shares, halting.share_of_macs(asked, running).unsqueeze(1)], dim=1)
    weight, behind = stage.halting.step(score, halting.eps)
    return replace(
        stage,
        x=x,
        mean=torch.addcmul(stage.mean, weight.to(x.dtype), x),
        halting=behind,
        executed=torch.cat([stage.executed, unit.share_of_macs(running).unsqueeze(1)], dim=1),
        asked=shares,
    )


def _computed(unit: Unit, x: Tensor, execute: Execute) -> Tensor:
    """Return the unit's output for images that all run it; there is nothing to blend."""
    if execute is masked:
        return unit.execute(x)
    weights = x.new_zeros(x.shape[0], 2)
    weights[:, 1] = 1
    return execute(unit, x, weights)


def _joined(parts: Sequence[_Ended]) -> _Ended:
    """Return all images in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    return _Ended(*(torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)))
