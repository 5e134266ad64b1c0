"""Served networks in PyTorch, where the engine is missing or a network has no plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.execution.execution import cascade, gathered
from sidestep.execution.prepare import prepare
from sidestep.networks.forward import LeavingForward, padded
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import walk
from sidestep.routing.dial import added
from sidestep.routing.exit_rule import Certainty, ExitRule
from sidestep.routing.router import Router
from sidestep.routing.samplers import argmax
from sidestep.serve.runner import Doubles, KeptRows, Row
from sidestep.types import CostModel, Decisions


class TorchRunner:
    """A `Runner` that is PyTorch: images leave as in cascade execution, units run gathered.

    Args:
        network: in evaluation mode; left untouched.
        cost: its price list.
        rule: where images leave early exits, but for its thresholds; None for a network without.
        input_size: height and width of the images.
        mean: of every channel of pixels in [0, 1], subtracted.
        std: of every channel, divided by.
    """

    name = "pytorch"
    precision = "float32"
    never, always = float("inf"), float("-inf")

    def __init__(
        self,
        network: DynamicNetwork,
        cost: CostModel,
        rule: ExitRule | None,
        *,
        input_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.network = prepare(network, torch.zeros(2, len(mean), *input_size))
        self.cost, self.rule = cost, rule
        self.num_exits = 0 if rule is None else rule.num_exits - 1
        self.num_threads = torch.get_num_threads()
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def room_for(self, count: int) -> KeptRows:
        return KeptRows()

    @torch.inference_mode()
    def run(self, images: npt.NDArray[Any], settings: Doubles, out: KeptRows, done: int) -> None:
        x = torch.from_numpy(np.ascontiguousarray(images))
        if x.dtype == torch.uint8:
            x = (x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

        def tell(indices: list[int], logits: Tensor, decisions: Decisions, exit: int) -> None:
            macs = self.cost.per_sample(decisions).tolist()
            paths = _paths(decisions)
            temperatures = None if self.rule is None else self.rule.temperatures
            for place, index in enumerate(indices):
                row = Row(
                    logits=logits[place].float().numpy(),
                    temperature=1.0 if temperatures is None else temperatures[exit],
                    path=paths[place].numpy(),
                    exit=exit,
                    macs=macs[place],
                )
                out.keep(index, row, done)

        x = x.contiguous(memory_format=torch.channels_last)
        if self.rule is None or not self.network.lets_leave:
            router = self._dialled(torch.from_numpy(settings)) if settings.shape[1] else None
            said = self.network(x, execution=gathered, router=router)
            tell(list(range(len(x))), said.logits, said.decisions, self.network.num_exits - 1)
        else:
            walk(self.network, x, _Answering(self.network, self.rule, torch.from_numpy(settings), tell))

    def _dialled(self, biases: Tensor) -> Router:
        """Return the network's router with (B, L) biases, those of every image its own."""
        assert self.network.router is not None  # whose gates have a dial
        return _RowsDialled(self.network.router, added(biases, self.network.num_options))


class _RowsDialled(Router):
    """A router that adds (B, L, K) to the logits of images, every image its own."""

    def __init__(self, inner: Router, biases: Tensor) -> None:
        super().__init__()
        self.inner, self.biases = inner, biases

    def begin(self, images: Tensor) -> Any:
        return self.inner.begin(images)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.inner(unit, features, state)
        return logits + self.biases[:, unit], state


def _paths(decisions: Decisions) -> Tensor:
    """Return (B, L) options, -1 where an image had left."""
    weights = decisions.weights
    if not weights.shape[1]:  # a network of exits alone
        return torch.zeros(len(weights), 0, dtype=torch.int64)
    reached = weights.sum(dim=2) > 0
    return torch.where(reached, decisions.paths(), -1)


class _Answering(LeavingForward):
    """A cascade in which every image has thresholds of its own, and which tells of images as they leave.

    Args:
        network: with early exits.
        rule: where images leave, but for its thresholds.
        thresholds: (B, E) of every image.
        tell: (indices of images, their logits, what was decided for them, exit).
    """

    def __init__(
        self,
        network: DynamicNetwork,
        rule: ExitRule,
        thresholds: Tensor,
        tell: Callable[[list[int], Tensor, Decisions, int], None],
    ) -> None:
        super().__init__(network, network.router, argmax, cascade, rule)
        self.thresholds, self.tell = thresholds, tell
        self.num_exits, self.all_units = network.num_exits, network.units_before[-1]

    def leaves(self, index: int, seen: Certainty) -> Tensor:
        if index == self.thresholds.shape[1]:
            return super().leaves(index, seen)
        return seen.score >= self.thresholds[self.rows, index]

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        before = len(self.left)
        goes_on = super().at_exit(index, classify)
        for part in self.left[before:]:
            decided = padded(part.decided, self.all_units)
            exits = F.one_hot(torch.full_like(part.rows, index), self.num_exits).float()
            decisions = Decisions(weights=decided.weights, asked=decided.asked, exits=exits)
            self.tell(part.rows.tolist(), part.logits, decisions, index)
        return goes_on
