"""Ranges of a plan's values under the decisions that it takes, and which of them a byte is to cover.

What no image reaches has the ranges that it would have if all images did. Every tensor gets one of three: all
that was seen, all but a share of it (percentile), or the one with the least squared error. Which one is
measured: by the error of what reads the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.plan.byte_maps import KEEPING, Grid, grid_between
from sidestep.plan.format import Op, Plan, Step, inputs_of, lists_of_ops
from sidestep.progress import through
from sidestep.targets.byte_ops import padding_of
from sidestep.targets.torch_plan import Observe, TorchPlan

Rule = Literal["max", "percentile", "squared error"]

_BINS = 2048
# The share of a tensor's entries outside of a percentile's range.
_OUTSIDE = 1e-4
# The smallest range that the squared error is searched down to, as a share of the largest, and its steps.
_SMALLEST, _STEPS = 0.2, 81


def groups_of(plan: Plan, made: frozenset[int]) -> dict[int, int]:
    """Return the group of every value that is bytes or is read as such; values of a group share a grid.

    Choices tie what their options result in, since a unit that is skipped hands on its input, and operations
    that keep bytes as they are tie what they read to what they make.

    Args:
        plan: spread out.
        made: values that are made as bytes.
    """
    group: dict[int, int] = {value: value for value in made}

    def top(value: int) -> int:
        while group.setdefault(value, value) != value:
            value = group[value]
        return value

    for a, b in _tied(plan.steps, made):
        group[top(a)] = top(b)
    return {value: top(value) for value in group}


def _tied(steps: list[Step], made: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of values in one group; a value that is only read as bytes is tied to itself."""
    for step in steps:
        for op in (op for ops in lists_of_ops([step]) for op in ops if op["out"] in made):
            for value in maps_read(op):
                yield value, op["out"] if op["op"] in KEEPING else value
        for option in step.get("options", ()):
            for value, result in zip(step["defines"], option["results"], strict=True):
                if value in made:
                    yield result, value


def maps_read(op: Op) -> list[int]:
    """Return the maps that an operation reads; not one whose size alone it looks at."""
    if op["op"] == "scale":
        return [op["in"][0]]
    if op["op"] in ("linear", "vgather"):
        return []
    return [value for value in inputs_of(op) if value != op.get("like")]


@dataclass(frozen=True, slots=True)
class Range:
    """What a byte covers.

    Attributes:
        low: the smallest number.
        high: the largest.
    """

    low: float
    high: float

    @property
    def grid(self) -> Grid:
        """Return the grid of the range."""
        return grid_between(self.low, self.high)


class Observer:
    """Collects the extrema, and then the histograms, of groups of values while a plan runs.

    Args:
        groups: of the values.

    Attributes:
        ranges: extrema by group, 0 included; a group that no image has reached has none.
        counts: (2048) histograms between these, by group.
    """

    def __init__(self, groups: Mapping[int, int]) -> None:
        self.groups = groups
        self.ranges: dict[int, Range] = {}
        self.counts: dict[int, Tensor] = {}

    def extrema(self, op: Op, values: Mapping[int, Tensor], out: Tensor) -> None:
        """Note the extrema of what an operation has made."""
        for group, x in self._seen(op, values, out):
            self.ranges[group] = _wider(self.ranges.get(group), x)

    def histogram(self, op: Op, values: Mapping[int, Tensor], out: Tensor) -> None:
        """Count what an operation has made, between the extrema of its group."""
        for group, x in self._seen(op, values, out):
            seen = self.ranges[group]
            # Where all numbers are 0 there is nothing to choose between.
            counts = torch.histc(x, _BINS, seen.low, seen.high if seen.high > seen.low else 1.0)
            self.counts[group] = self.counts.get(group, torch.zeros(_BINS, dtype=torch.float64)) + counts

    def _seen(self, op: Op, values: Mapping[int, Tensor], out: Tensor) -> list[tuple[int, Tensor]]:
        """Return what is to be noted: the result, and the image where it is read."""
        found = [(op["out"], out), *((0, values[0]) for value in inputs_of(op) if value == 0)]
        return [(self.groups[value], x) for value, x in found if value in self.groups]

    def candidates(self, group: int) -> dict[Rule, Range]:
        """Return the ranges that a group may get, by the rule that gives them."""
        seen, counts = self.ranges[group], self.counts[group]
        return {
            "max": seen,
            "percentile": percentile(seen, counts),
            "squared error": least_squares(seen, counts),
        }


def _wider(known: Range | None, x: Tensor) -> Range:
    """Return a range, 0 at first, that holds further numbers as well."""
    low, high = (each.item() for each in x.aminmax())
    known = known or Range(0.0, 0.0)
    return Range(min(known.low, low), max(known.high, high))


def _edges(seen: Range) -> Tensor:
    return torch.linspace(seen.low, seen.high, _BINS + 1, dtype=torch.float64)


def percentile(seen: Range, counts: Tensor) -> Range:
    """Return the range that all but a share of 1e-4 of a histogram's entries lie in, half on either side.

    Where all numbers are on one side of 0, the share is on that side.
    """
    edges, below = _edges(seen), counts.cumsum(0) / counts.sum().clamp_min(1)
    share = _OUTSIDE / (2 if seen.low < 0 < seen.high else 1)
    high = edges[1:][below >= 1 - share][0].item() if seen.high > 0 else 0.0
    low = edges[:-1][below > share][0].item() if seen.low < 0 else 0.0
    return Range(min(low, 0.0), max(high, 0.0))


def least_squares(seen: Range, counts: Tensor) -> Range:
    """Return the part of a range in which bytes have the least squared error, both ends cut off alike.

    A number inside is off by a step's uniform error, s^2 / 12, and one outside by its distance from the end.
    """
    edges = _edges(seen)
    middles = (edges[:-1] + edges[1:]) / 2
    best, least = seen, float("inf")
    for part in torch.linspace(_SMALLEST, 1.0, _STEPS, dtype=torch.float64).tolist():
        low, high = part * seen.low, part * seen.high
        over = (middles - high).clamp_min(0) + (low - middles).clamp_min(0)
        step = (high - low) / 255
        inside = (over == 0).double()
        error = (counts * (over.square() + inside * step * step / 12)).sum().item()
        if error < least:
            best, least = Range(low, high), error
    return best


class _Measured:
    """Adds up, for every range that a group may get, the errors of what reads its values.

    A convolution's error is that of its sums, as a share of their size; of everything else that reads a value
    it is the value's own.
    """

    def __init__(
        self, groups: Mapping[int, int], candidates: Mapping[int, Mapping[Rule, Range]], plan: Plan
    ) -> None:
        self.groups, self.candidates, self.plan = groups, candidates, plan
        self.shapes: Mapping[int, Any] = {}
        self.errors: dict[tuple[int, Rule], float] = {}
        self._reading: dict[tuple[int, int, Rule], tuple[float, float]] = {}

    def observe(self, op: Op, values: Mapping[int, Tensor], out: Tensor) -> None:
        if op["out"] not in self.groups:
            return
        for value in maps_read(op):
            for rule, wanted in self.candidates.get(self.groups.get(value, -1), {}).items():
                x = values[value]
                error = wanted.grid.to_numbers(wanted.grid.to_bytes(x)) - x
                size = out if op["op"] == "conv" and value == op["in"] else x
                if op["op"] == "conv" and value == op["in"]:
                    weight = self.plan.tensors[op["weight"]]
                    padded = F.pad(error, padding_of(op, self.shapes[value], weight.shape[2:]))
                    error = F.conv2d(padded, weight, None, op["stride"], 0, groups=op["groups"])
                key = op["out"], value, rule
                before = self._reading.get(key, (0.0, 0.0))
                sums = error.double().square().sum().item(), size.double().square().sum().item()
                self._reading[key] = before[0] + sums[0], before[1] + sums[1]

    def best(self) -> dict[int, Rule]:
        """Return the rule with the smallest error for every group."""
        for (_, value, rule), (error, size) in self._reading.items():
            key = self.groups[value], rule
            self.errors[key] = self.errors.get(key, 0.0) + error / (size or 1.0)
        return {
            group: min(rules, key=lambda rule: self.errors.get((group, rule), 0.0))
            for group, rules in self.candidates.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Ranges of a plan's values.

    Attributes:
        groups: of the values.
        grids: of all values; not of those behind an exit at which all images have left.
        rules: by which the range of every group was found.
        in_grids: of the vectors that linear layers read, by the layers' outputs.
    """

    groups: Mapping[int, int]
    grids: Mapping[int, Grid]
    rules: Mapping[int, Rule]
    in_grids: Mapping[int, Grid]


def calibrated(plan: Plan, made: frozenset[int], batches: Sequence[Tensor]) -> Calibrated:
    """Return ranges, found while a real plan runs: a value is seen for the images alone that reach it.

    A value that none reaches is seen for all that come by: as if these chose the option that it belongs to,
    which changes nothing of what follows.

    Args:
        plan: spread out.
        made: values that are to be bytes.
        batches: (B, C, H, W) normalised images.
    """
    groups = groups_of(plan, made)
    found = _found(TorchPlan(plan), groups, set(groups.values()), batches)
    if missed := set(groups.values()) - found.rules.keys():
        # A part of the images says enough about what is never executed.
        more = _found(_EveryOption(plan), groups, missed, batches[: max(1, len(batches) // 4)])
        found = Calibrated(
            groups=groups,
            grids={**found.grids, **more.grids},
            rules={**found.rules, **more.rules},
            in_grids={**more.in_grids, **found.in_grids},
        )
    return found


def _found(
    runner: TorchPlan, groups: Mapping[int, int], wanted: Set[int], batches: Sequence[Tensor]
) -> Calibrated:
    """Return the ranges of those wanted groups that images reach in a run of a real plan."""
    observer = Observer({value: group for value, group in groups.items() if group in wanted})
    vectors = _Vectors()

    def first(op: Op, values: Mapping[int, Tensor], out: Tensor) -> None:
        observer.extrema(op, values, out)
        vectors.observe(op, values)

    _run(runner, first, batches, "extrema")
    _run(runner, observer.histogram, batches, "histograms")
    candidates = {group: observer.candidates(group) for group in observer.ranges}
    measured = _Measured(groups, candidates, runner.plan)
    measured.shapes = runner.shapes
    # Errors are averages over many pixels: a part of the images says which range is best.
    _run(runner, measured.observe, batches[: max(1, len(batches) // 4)], "ranges")
    rules = measured.best()
    grids = {
        value: candidates[group][rules[group]].grid for value, group in groups.items() if group in candidates
    }
    return Calibrated(groups=groups, grids=grids, rules=rules, in_grids=vectors.grids())


class _EveryOption(TorchPlan):
    """A plan whose options all run for all images, and are shown; images go on with what they have chosen."""

    def run_options(self, step: Step, chosen: Tensor, values: dict[int, Tensor]) -> None:
        for option in step["options"]:
            self.run_ops(option["ops"], dict(values), len(chosen))
        observe, self.observe = self.observe, None
        super().run_options(step, chosen, values)
        self.observe = observe


class _Vectors:
    """Notes the extrema of what linear layers read."""

    def __init__(self) -> None:
        self.ranges: dict[int, Range] = {}

    def observe(self, op: Op, values: Mapping[int, Tensor]) -> None:
        if op["op"] == "linear":
            self.ranges[op["out"]] = _wider(self.ranges.get(op["out"]), values[op["in"]])

    def grids(self) -> dict[int, Grid]:
        return {layer: seen.grid for layer, seen in self.ranges.items()}


def _run(runner: TorchPlan, observe: Observe, batches: Sequence[Tensor], what: str) -> None:
    runner.observe = observe
    for images in through(batches, f"finding {what} of values", len(batches)):
        runner(images)
