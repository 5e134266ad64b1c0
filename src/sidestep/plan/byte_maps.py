"""Maps of bytes in plans of version 3: which numbers the bytes stand for, and who makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.plan.format import Op, Step, inputs_of

# Operations whose bytes stand for the same numbers as the bytes that they read.
KEEPING = ("max_pool", "avg_pool", "pad", "crop", "concat", "relu", "resize")


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that a map of bytes can say: `scale * (byte - zero)`.

    Attributes:
        scale: the step, a float32 number above 0.
        zero: the byte that stands for 0, in [0, 255].
    """

    scale: float
    zero: int

    def to_bytes(self, x: Tensor) -> Tensor:
        """Return the nearest bytes to numbers, the even one of two equally near; NaN becomes 0."""
        inverse = single(1 / torch.tensor(self.scale, dtype=torch.float64))
        return code(fma(x, inverse, torch.tensor(float(self.zero))).nan_to_num(0.0))

    def to_numbers(self, x: Tensor) -> Tensor:
        """Return the numbers that bytes stand for."""
        return (x.float() - self.zero) * self.scale


def code(x: Tensor, least: float = 0, most: float = 255) -> Tensor:
    """Return float32 numbers cut off at two others and rounded to bytes, halves to the even one."""
    return x.clamp(least, most).round().to(torch.uint8)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c of float32 numbers, rounded once."""
    return torch.addcmul(c.double(), a.double(), b.double()).float()


def single(x: Tensor) -> Tensor:
    """Return float64 numbers rounded once to float32."""
    return x.float()


def grid_between(low: float, high: float) -> Grid:
    """Return the grid whose first and last bytes stand for two numbers, with 0 on it.

    >>> grid_between(0.0, 255.0), grid_between(-100.0, 155.0)
    (Grid(scale=1.0, zero=0), Grid(scale=1.0, zero=100))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor((high - low) / 255 or 1.0, dtype=torch.float32).item()
    return Grid(scale, min(max(round(-low / scale), 0), 255))


def grid_made_by(op: Op, grids: Mapping[int, Grid]) -> Grid | None:
    """Return the grid of what an operation makes, or None where that is real.

    Args:
        op: of a plan.
        grids: of the bytes that it may read.
    """
    if "scale" in op:
        return Grid(op["scale"], op.get("zero", 0))
    read = inputs_of(op)
    return grids.get(read[0]) if read and op["op"] in KEEPING else None


def grids_of(steps: Iterable[Step]) -> dict[int, Grid]:
    """Return the grids of all values of a plan that are bytes."""
    found: dict[int, Grid] = {}
    for step in steps:
        for ops in [step.get("ops", ()), *(option["ops"] for option in step.get("options", ()))]:
            for op in ops:
                if (grid := grid_made_by(op, found)) is not None:
                    found[op["out"]] = grid
        if "choose" in step:
            results = step["options"][0]["results"]
            pairs = zip(step["defines"], results, strict=True)
            found |= {value: found[result] for value, result in pairs if result in found}
    return found
