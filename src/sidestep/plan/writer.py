"""What a plan is written with: operations in order, values by number, tensors that are still to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import ExportError
from sidestep.plan.format import Op, Step
from sidestep.plan.weights import Weights, finite

_VALUE = 1 << 32


@dataclass(frozen=True, slots=True)
class Map:
    """A tensor that is a map of the plan.

    Attributes:
        value: its number.
        steps: of rows and of columns that are still to be taken, since a plan strides both at once.
        border: columns of zeros on the left and on the right, rows above and below, that a convolution is
            still to add.
    """

    value: int
    steps: tuple[int, int] = (1, 1)
    border: tuple[int, ...] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of any shape whose entries are entries of one map.

    Attributes:
        value: number of the map.
        size: its (C, H, W).
        codes: for every entry its place in the map, counted in the order (C, H, W). Whatever reorders a
            tensor reorders its codes alike.
    """

    value: int
    size: tuple[int, int, int]
    codes: Tensor

    @property
    def pixels(self) -> Tensor:
        """Return the (H * W, C) codes of the map's pixels, row by row."""
        return codes_of(self.size).flatten(1).T

    @property
    def is_of_pixels(self) -> bool:
        """Return whether the last dimension is that of the channels, and all pixels follow each other."""
        return torch.equal(self.codes.reshape(-1, self.codes.shape[-1]), self.pixels)

    def alike(self, other: Traced) -> bool:
        """Return whether another tensor shows a map of this size in this way."""
        return isinstance(other, View) and self.size == other.size and torch.equal(self.codes, other.codes)


def codes_of(size: Sequence[int]) -> Tensor:
    """Return the codes of a (C, H, W) map in its own order."""
    return torch.arange(math.prod(size)).view(*size)


@dataclass(frozen=True, slots=True)
class Vector:
    """A tensor of any shape whose entries are entries of the plan's vectors.

    Attributes:
        codes: for every entry 2^32 * value + index. Whatever reorders a tensor reorders its codes alike, so
            views cost nothing until an operation needs entries in a row.
    """

    codes: Tensor


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is the same for every image."""

    tensor: Tensor


Traced = Map | View | Vector | Constant


class Writer:
    """Collects the steps of a plan.

    Attributes:
        weights: of the plan.
        steps: written so far.
        place: what is being written, for errors.
    """

    def __init__(self, module: nn.Module) -> None:
        self.weights = Weights(module)
        self.steps: list[Step] = []
        self.place = ""
        # Of the step or option that is being written; a step is begun by its first operation.
        self._ops: list[Op] | None = None
        self._num_values = 1
        self._lengths: dict[int, int] = {}

    def fail(self, problem: str) -> ExportError:
        """Return the error that names the place."""
        return ExportError(f"{self.place} {problem}")

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Name what is written inside, for errors."""
        before, self.place = self.place, place
        yield
        self.place = before

    def map(self, op: str, read: int | list[int], **fields: Any) -> Map:
        """Write an operation whose result is a map, and return that."""
        return Map(self._write(op, read, self._new_value(), fields))

    def vector(self, op: str, read: int | list[int] | None, shape: torch.Size, **fields: Any) -> Vector:
        """Write an operation whose result is a vector, and return it as a tensor of some shape."""
        length = shape.numel()
        value = self._write(op, read, self._new_value(length), fields)
        return Vector((value * _VALUE + torch.arange(length)).view(shape))

    def view(self, x: Map, shape: torch.Size) -> View:
        """Return a map of a (1, C, H, W) shape as what can be looked at in other orders."""
        _, channels, height, width = shape
        return View(self.plain(x), (channels, height, width), codes_of(shape))

    def maker(self, x: Map) -> Op | None:
        """Return the operation of the same step or option that made a map."""
        return next((op for op in self._ops or () if op["out"] == x.value), None)

    def plain(self, traced: Traced) -> int:
        """Return the map that a tensor is, rows and columns taken.

        Raises:
            ExportError: for a vector or a constant, or a map whose axes are in another order.
        """
        if isinstance(traced, View):
            raise self.fail("computes with a map of permuted axes, and plans have one order; permute it back")
        if not isinstance(traced, Map):
            raise self.fail("computes with a vector or a constant where plans have a map; use maps there")
        if any(traced.border):
            raise self.fail(
                f"pads a map by {list(traced.border)}, and plans by channels of zeros or in front of a "
                "convolution; use those"
            )
        if traced.steps == (1, 1):
            return traced.value
        return self.map("pad", traced.value, stride=self.stride(traced), before=0, after=0).value

    def stride(self, x: Map) -> int:
        """Return the step of rows and columns that are still to be taken.

        Raises:
            ExportError: where they differ.
        """
        if len(set(x.steps)) > 1:
            raise self.fail(f"takes rows and columns in steps {x.steps}, and plans in one; make them equal")
        return x.steps[0]

    def dense(self, traced: Traced) -> int:
        """Return the vector that has the entries of a tensor in their order, gathered if they are not.

        Raises:
            ExportError: for a map.
        """
        codes = self.as_vector(traced).codes.flatten()
        values = list(dict.fromkeys((codes // _VALUE).tolist()))
        if torch.equal(codes, values[0] * _VALUE + torch.arange(self._lengths[values[0]])):
            return int(values[0])
        starts, length = {}, 0
        for value in values:
            starts[value] = length
            length += self._lengths[value]
        indices = [starts[code // _VALUE] + code % _VALUE for code in codes.tolist()]
        return self._write("vgather", values, self._new_value(len(indices)), {"indices": indices})

    def as_vector(self, traced: Traced) -> Vector:
        """Return a vector, a constant as one that the plan defines.

        Raises:
            ExportError: for a map.
        """
        if isinstance(traced, Vector):
            return traced
        if isinstance(traced, Map | View):
            raise self.fail("computes with a map where plans have a vector; pool it first")
        weight = self.weights.store(finite(traced.tensor).flatten())
        return self.vector("vconst", None, traced.tensor.shape, weight=weight)

    def choose(self, logits: Traced) -> Step:
        """Begin a step of choice by logits, and return it, still without options."""
        step: Step = {"choose": self.dense(logits), "options": [], "defines": []}
        self.leave(step)
        return step

    def leave(self, step: Step) -> None:
        """Write a step that is no list of operations."""
        self.steps.append(step)
        self._ops = None

    @contextmanager
    def option(self, step: Step) -> Iterator[list[int]]:
        """Write into a further option of a choice; yield the list of its results."""
        ops: list[Op] = []
        results: list[int] = []
        step["options"].append({"ops": ops, "results": results})
        self._ops = ops
        yield results
        self._ops = None

    def result(self, traced: Traced) -> int:
        """Return the map that an option results in, in whatever order a tensor shows its entries."""
        return traced.value if isinstance(traced, View) else self.plain(traced)

    def define(self, step: Step, results: Sequence[Traced]) -> Map | View:
        """Return the map that a choice results in, in the order of its options' results.

        Raises:
            ExportError: where these differ.
        """
        value, (first, *others) = self._new_value(), results
        step["defines"].append(value)
        if not any(isinstance(result, View) for result in results):
            return Map(value)
        if not isinstance(first, View) or not all(first.alike(other) for other in others):
            raise self.fail("has options that order their results differently, and plans one order for all")
        return View(value, first.size, first.codes)

    def _new_value(self, length: int | None = None) -> int:
        """Return the number of a new value, a vector if it has a length."""
        value, self._num_values = self._num_values, self._num_values + 1
        if length is not None:
            self._lengths[value] = length
        return value

    def _write(self, op: str, read: int | list[int] | None, out: int, fields: dict[str, Any]) -> int:
        if self._ops is None:
            self._ops = []
            self.steps.append({"ops": self._ops})
        self._ops.append({"op": op, **({} if read is None else {"in": read}), "out": out, **fields})
        return out
