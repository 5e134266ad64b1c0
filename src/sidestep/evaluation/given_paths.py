"""Paths that images are made to take, whatever the network decides: what times of paths are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.errors import ExecutionError
from sidestep.evaluation.rivals import pytorch_input
from sidestep.execution.execution import Execution, gathered
from sidestep.execution.prepare import Precision, cast
from sidestep.networks.forward import Forward, LeavingForward
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import walk
from sidestep.routing.exit_rule import Certainty, ExitRule
from sidestep.routing.samplers import argmax
from sidestep.types import CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """What images are made to do.

    Attributes:
        options: (B, L) option of every unit, also behind the exit.
        exits: (B,) exit at which the image leaves.
    """

    options: Tensor
    exits: Tensor

    def part(self, index: int, size: int) -> Paths:
        """Return those of one of several batches of a size, by its index."""
        rows = slice(index * size, (index + 1) * size)
        return Paths(options=self.options[rows], exits=self.exits[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRunner:
    """A way to run images along given paths. Decisions are made as always, and are not followed.

    Attributes:
        convert: (B, 3, H, W) float32 images -> the same as the runtime wants them; not timed.
        run: (what `convert` returned, the paths); timed.
    """

    convert: Callable[[Tensor], Any]
    run: Callable[[Any, Paths], object]


def draw_paths(cost: CostModel, batch_size: int, count: int, *, chooses: bool, seed: int = 0) -> list[Paths]:
    """Return batches of random paths that differ in what they cost.

    The first ones are extremes: all images at each exit, with every unit at its dearest option and, where
    units are chosen, with every unit skipped. Behind them every batch has a rate of its own at which units
    are executed and exits are passed. In every other one all images execute the same units, since what a unit
    takes is told by batches of which one has it always and another never.

    Args:
        cost: price list of the network, for its units and exits.
        batch_size: images of a batch.
        count: number of batches.
        chooses: whether the network chooses among options of units.
        seed: of what is drawn.
    """
    num_units, num_options = cost.options.shape
    num_exits = 1 if cost.exits is None else len(cost.exits)
    generator = torch.Generator().manual_seed(seed)
    dearest = torch.full((batch_size, num_units), num_options - 1)
    paths = []
    for exit in range(num_exits):
        exits = torch.full((batch_size,), exit)
        paths.append(Paths(options=dearest, exits=exits))
        if chooses and num_units:
            paths.append(Paths(options=torch.zeros_like(dearest), exits=exits))
    while len(paths) < count:
        keep, pass_on = torch.rand(2, generator=generator).tolist()
        drawn = torch.randint(1, num_options, dearest.shape, generator=generator)
        executed = torch.rand(dearest.shape, generator=generator) < keep
        if len(paths) % 2:
            executed = executed[:1].expand_as(executed)
        passed = torch.rand((batch_size, num_exits), generator=generator) < pass_on
        passed[:, -1] = False
        exits = passed.int().argmin(dim=1)  # the first that is not passed
        paths.append(Paths(options=torch.where(executed, drawn, 0) if chooses else dearest, exits=exits))
    return paths


Call = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]


def called(place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return what a piece of a network computes, in PyTorch."""
    return function(*arguments)


class _Given(Forward):
    """A forward pass that asks every router and follows a given path.

    Attributes:
        paths: of the images.
        call_piece: what computes the pieces.
        rows: which images are still on their way, by index.
    """

    paths: Paths
    call_piece: Call
    rows: Tensor | slice = slice(None)

    def call(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.call_piece(place, function, arguments)

    def ask(self, index: int) -> Tensor:
        super().ask(index)
        return F.one_hot(self.paths.options[self.rows, index], self.network.num_options).float()


class _GivenLeaving(_Given, LeavingForward):
    """The same with early exits: every exit says how certain it is, and images leave as told."""

    rows: Tensor

    def leaves(self, index: int, seen: Certainty) -> Tensor:
        super().leaves(index, seen)
        return self.paths.exits[self.rows] <= index


def run_along(
    network: DynamicNetwork,
    images: Tensor,
    paths: Paths,
    *,
    execution: Execution,
    criterion: str,
    call: Call = called,
) -> RoutedOutput:
    """Return what a network says about images that take given paths.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W) normalised images.
        paths: of the images.
        execution: how units are run.
        criterion: by which exits are certain.
        call: what computes the pieces of the network.
    """
    way: _Given
    if network.lets_leave:
        rule = ExitRule(thresholds=[0.0] * (network.num_exits - 1), criterion=criterion)
        way = _GivenLeaving(network, network.router, argmax, execution, rule)
    else:
        way = _Given(network, network.router, argmax, execution, None)
    way.paths, way.call_piece = paths, call
    walk(network, images, way)
    return way.output()


def pytorch_paths(network: DynamicNetwork, precision: Precision, criterion: str) -> PathRunner:
    """Return PyTorch in eager mode, gathered, and where there are early exits as a cascade.

    Args:
        network: prepared, in float32.
        precision: of weights and features.
        criterion: by which images leave.

    Raises:
        ExecutionError: for a network whose way is not that of units and exits (ACT, SACT).
    """
    check_has_paths(network)
    ready = cast(network, precision)

    def run(images: Tensor, paths: Paths) -> Tensor:
        return run_along(ready, images, paths, execution=gathered, criterion=criterion).logits

    return PathRunner(convert=pytorch_input(precision), run=run)


def check_has_paths(network: DynamicNetwork) -> None:
    """Return if the way through a network is one of units and exits.

    Raises:
        ExecutionError: for a network that halts inside of its stages.
    """
    if network.router is not None and not network.chooses_options:
        raise ExecutionError(
            "times of paths need a network that skips units or leaves at exits, got one that halts (ACT, "
            "SACT); give its budget as a share of the MACs"
        )
