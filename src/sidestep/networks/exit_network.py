"""Networks of exits alone: no units to choose about, every image computes what lies before its exit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sidestep.layers.static_names import StaticNames
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import ExitStop, SegmentStop, Stop

# Nested tuples, lists and dicts of tensors, each with one row per image.
State = Any


class ExitNetwork(StaticNames, DynamicNetwork):
    """A network with E exits: what an exit needs is computed when the exit is reached, and not before.

    Subclasses define `begin`, `advance` and `classify`. These leave the state that they are given as it was,
    and rows of a state know nothing of each other in evaluation mode.

    Args:
        num_exits: number E of exits.
    """

    def __init__(self, num_exits: int) -> None:
        super().__init__()
        self.router = None
        self._units_before = (0,) * num_exits

    def begin(self, images: Tensor) -> State:
        """Return the state in front of the first exit, given (B, 3, H, W) images."""
        raise NotImplementedError

    def advance(self, index: int, state: State) -> State:
        """Return the state at exit `index`, given that of the exit before, or of `begin`."""
        raise NotImplementedError

    def classify(self, index: int, state: State) -> Tensor:
        """Return the (B, C) logits of exit `index`, given what `advance` returned for it."""
        raise NotImplementedError

    def stem(self, images: Tensor) -> State:
        return self.begin(images)

    def stops(self) -> Iterator[Stop]:
        for index in range(self.num_exits):
            yield SegmentStop(index, partial(self.advance, index))
            yield ExitStop(index, partial(self.classify, index))

    @property
    def units_before(self) -> Sequence[int]:
        return self._units_before

    @property
    def has_early_exits(self) -> bool:
        """Return True: what it says and costs is that of exits, were it a single one."""
        return True

    def parts(self) -> dict[str, nn.Module]:
        return {"blocks": self}
