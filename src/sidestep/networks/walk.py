"""The one way through a network: stem, unit after unit, exits between them, the head as the last exit.

A network says which stops there are, a visitor what happens at each of them: a forward pass runs them, the
cost book prices them, the plan traces them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sidestep.layers.unit import Unit
from sidestep.routing.router import Router
from sidestep.types import RoutedOutput

# What the pieces of a network are called, in prices and in errors.
STEM, ROUTER_START = "the stem", "the router's start"


def router_place(index: int) -> str:
    """Return what the router in front of unit `index` is called."""
    return f"the router of unit {index}"


def segment_place(index: int) -> str:
    """Return what the way to exit `index` is called."""
    return f"the way to exit {index}"


def exit_place(index: int) -> str:
    """Return what exit `index` is called."""
    return f"exit {index}"


class Stop(Protocol):
    """A place on the way."""

    def visit(self, visitor: Visitor) -> bool:
        """Let a visitor do what it does here, and return whether the way goes on."""
        ...


@dataclass(frozen=True, slots=True)
class UnitStop:
    """A place of choice: unit `index` of the network."""

    index: int
    unit: Unit

    def visit(self, visitor: Visitor) -> bool:
        visitor.at_unit(self.index, self.unit)
        return True


@dataclass(frozen=True, slots=True)
class SegmentStop:
    """What every image computes on its way to exit `index`: features to features, nests of tensors both."""

    index: int
    compute: Callable[[Any], Any]

    def visit(self, visitor: Visitor) -> bool:
        visitor.at_segment(self.index, self.compute)
        return True


@dataclass(frozen=True, slots=True)
class MemberStop:
    """Where member `index` of a cascade begins: the images to the features in front of its first unit."""

    index: int
    start: Callable[[Any], Any]

    def visit(self, visitor: Visitor) -> bool:
        visitor.at_member(self.index, self.start)
        return True


@dataclass(frozen=True, slots=True)
class ExitStop:
    """Exit `index`, which maps features to (B, C) logits; the network's head is the last one."""

    index: int
    classify: Callable[[Any], Tensor]

    def visit(self, visitor: Visitor) -> bool:
        return visitor.at_exit(self.index, self.classify)


class Walkable(Protocol):
    """What can be walked through."""

    def stem(self, images: Tensor) -> Any:
        """Return the features in front of the first stop."""
        ...

    def stops(self) -> Iterator[Stop]:
        """Yield the stops in order; the last one is an exit."""
        ...


class Visitor:
    """What happens on the way through a network.

    Subclasses define `at_unit` and `at_exit`, and may do more around every piece that is computed (`call`).

    Args:
        router: who is asked in front of units, or None.

    Attributes:
        x: features where the visitor stands.
        state: of the router.
        images: that the walk began with, of those images that are still on the way.
    """

    def __init__(self, router: Router | None) -> None:
        self.router = router
        self.x: Any = None
        self.images: Any = None
        self.state: Any = None

    def call(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a piece of the network computes.

        Args:
            place: what the piece is called.
            function: the piece.
            arguments: of the piece.
        """
        return function(*arguments)

    def begin(self, stem: Callable[[Any], Any], images: Any) -> None:
        """Run the stem, and let the router look at the images."""
        self.images = images
        self.x = self.call(STEM, stem, images)
        if self.router is not None:
            self.state = self.call(ROUTER_START, self.router.begin, images)

    def ask(self, index: int) -> Any:
        """Return the logits of the router in front of unit `index`; there has to be one."""
        assert self.router is not None
        logits, self.state = self.call(router_place(index), self.router, index, self.x, self.state)
        return logits

    def at_unit(self, index: int, unit: Unit) -> None:
        """Do what happens at a unit."""
        raise NotImplementedError

    def at_segment(self, index: int, compute: Callable[[Any], Any]) -> None:
        """Do what happens on the way to exit `index` of a network that has exits alone."""
        self.x = self.call(segment_place(index), compute, self.x)

    def at_member(self, index: int, start: Callable[[Any], Any]) -> None:
        """Do what happens where a member of a cascade begins, on its way to exit `index`."""
        self.x = self.call(segment_place(index), start, self.images)

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        """Do what happens at an exit, and return whether the way goes on."""
        raise NotImplementedError


def walk(network: Walkable, images: Any, visitor: Visitor) -> None:
    """Lead a visitor through a network, up to the last stop or to where the way ends.

    Args:
        network: where.
        images: (B, 3, H, W) normalised pixels, or what stands for them.
        visitor: who.
    """
    visitor.begin(network.stem, images)
    for stop in network.stops():
        if not stop.visit(visitor):
            return


class ForwardPass(Visitor):
    """A visitor that comes back with what a network returns."""

    def output(self) -> RoutedOutput:
        """Return the output of the network."""
        raise NotImplementedError


class Straight(Visitor):
    """Executes every unit, asks nobody, and classifies at the last exit alone.

    Args:
        last_exit: its index.

    Attributes:
        logits: (B, C) of the last exit.
    """

    logits: Tensor

    def __init__(self, last_exit: int) -> None:
        super().__init__(None)
        self.last_exit = last_exit

    def at_unit(self, index: int, unit: Unit) -> None:
        self.x = unit.execute(self.x)

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        if index == self.last_exit:
            self.logits = classify(self.x)
        return True
