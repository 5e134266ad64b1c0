"""What of a plan stays real: by the error that bytes add in each part and layer, measured on its answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from sidestep.plan.byte_maps import Grid
from sidestep.plan.format import Op, Plan, lists_of_ops
from sidestep.progress import through, under_way
from sidestep.quantisation.byte_plan import (
    Layout,
    byte_plan,
    is_end,
    made_on_bytes,
    quantised_weight,
    reads_of,
    spread_out,
)
from sidestep.quantisation.changes import Change, change_between
from sidestep.quantisation.plan_parts import Part, parts_of
from sidestep.quantisation.ranges import Calibrated, Rule, calibrated, maps_read
from sidestep.targets.byte_ops import Known, run_byte_op
from sidestep.targets.map_shapes import Shape
from sidestep.targets.torch_plan import TorchPlan

# A part stays real where that takes such a share of the divergence away.
_WORTH = 0.1
# Of the layers at most this share stays real, so that bytes still pay.
_MOST_REAL = 0.25
# Smaller linear layers cost neither time nor room.
_LARGE_LINEAR = 1 << 15
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution or linear layer of a plan.

    Attributes:
        name: of its weight.
        part: of the network that it belongs to.
        is_real: whether it stays real.
        error: root of the mean square of what bytes add to its output, as a share of that; None where no
            image has chosen it, or where it is no candidate for bytes.
        rule: by which the range of its output was found; None where that is real.
    """

    name: str
    part: Part
    is_real: bool
    error: float | None
    rule: Rule | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A plan on bytes, and how it came about.

    Attributes:
        plan: of version 3.
        layers: all convolutions and linear layers, in order.
        change: of its answers on the images that the ranges were found on.
    """

    plan: Plan
    layers: list[Layer]
    change: Change


def quantise(plan: Plan, batches: Sequence[Tensor]) -> Quantised:
    """Return a plan on bytes, with what stays real chosen by measured errors.

    At first all convolutions but the first are on bytes, and large linear layers. The first convolution joins
    them where that adds next to nothing to the divergence of the answers. Routers, exits and head stay real
    where that takes a tenth of it away. While more than 1 % of decisions or predictions change, as far as the
    number of images lets one say so, or answers diverge by more than 0.02 nats, layers that add the largest
    errors stay real too, up to a quarter of all.

    Args:
        plan: real.
        batches: (B, C, H, W) normalised images, on which ranges and errors are found.
    """
    search = Search(spread_out(plan), batches)
    return search.quantised(chosen(search))


def chosen(search: Search, *, rescue: bool = True) -> frozenset[int]:
    """Return the outputs of operations that stay real.

    Args:
        search: with nothing chosen.
        rescue: whether layers with large errors stay real too.
    """
    with under_way("choosing layers that stay real", search.most_trials) as search.advance:
        return _tried(search, rescue)


def _tried(search: Search, rescue: bool) -> frozenset[int]:
    real = search.with_parts({"first convolution"}) | search.unseen
    change = search.change(real)
    if (tried := search.change(search.unseen)).divergence <= (1 + _WORTH) * change.divergence:
        real, change = search.unseen, tried
    for part in ("routers", "exits", "head"):
        more = real | search.with_parts({part})
        if more != real and (tried := search.change(more)).divergence < (1 - _WORTH) * change.divergence:
            real, change = more, tried
    worst = [out for out in search.by_error() if out not in real]
    kept, count = real, 1
    while rescue and not change.is_small and count <= max(1, int(_MOST_REAL * len(search.layers))):
        more = real | search.alone(worst[:count])
        if (tried := search.change(more)).divergence < change.divergence:
            kept, change = more, tried
        count *= 2
    return kept


class Search:
    """Tries which operations of a plan stay real.

    Args:
        plan: real, and spread out.
        batches: images.
        grids: of values whose ranges are known, and not to be found.
        in_grids: of vectors that linear layers read, likewise.

    Attributes:
        parts: of the network, by the outputs of the operations that belong to them.
        ranges: of the values.
        layers: operations that may be on bytes and have weights, by their outputs.
        unseen: outputs of operations behind exits at which all images have left, which have no ranges.
        advance: is told of every trial.
    """

    def __init__(
        self,
        plan: Plan,
        batches: Sequence[Tensor],
        *,
        grids: Mapping[int, Grid] = MappingProxyType({}),
        in_grids: Mapping[int, Grid] = MappingProxyType({}),
    ) -> None:
        self.plan, self.batches = plan, batches
        self.advance: Callable[[float], None] = lambda amount: None
        self.parts = parts_of(plan)
        ops = [op for ops in lists_of_ops(plan.steps) for op in ops]
        made = made_on_bytes(plan.steps)
        self._ops = {op["out"]: op for op in ops}
        handed_on = {
            value for step in plan.steps for option in step.get("options", ()) for value in option["results"]
        }
        once = {value for value, count in reads_of(plan.steps).items() if count == 1} - handed_on
        self._for_one = {op["out"] for op in ops if op["out"] in once and (op["op"] == "conv" or is_end(op))}
        found = calibrated(plan, made, batches)
        self.ranges: Calibrated = replace(
            found, grids={**found.grids, **grids}, in_grids={**found.in_grids, **in_grids}
        )
        self.layers = {op["out"]: op for op in ops if op["out"] in made and op["op"] == "conv"}
        linears = {op["out"]: op for op in ops if op["op"] == "linear" and _is_large(op, plan)}
        self.layers |= linears
        self.unseen = self.whole(
            [op["out"] for op in ops if op["out"] in made and not self._is_seen(op)]
            + [out for out in linears if out not in self.ranges.in_grids]
        )
        runner = TorchPlan(plan)
        self._said = [runner(images) for images in through(batches, "running the plan", len(batches))]
        self._changes: dict[frozenset[int], Change] = {}
        self.errors = _errors(plan, self.layers, self.ranges, batches[: max(1, len(batches) // 4)])

    @property
    def most_trials(self) -> int:
        """Return how many trials there are at most: 2 of the first layer, 3 of parts, and doubled ones."""
        return 5 + max(1, int(_MOST_REAL * len(self.layers))).bit_length()

    def _is_seen(self, op: Op) -> bool:
        return all(value in self.ranges.grids for value in (op["out"], *maps_read(op)))

    def with_parts(self, parts: set[Part]) -> frozenset[int]:
        """Return the outputs of all operations of some parts."""
        return self.whole([out for out, part in self.parts.items() if part in parts])

    def whole(self, outs: Sequence[int]) -> frozenset[int]:
        """Return outputs of operations, and of the activations behind them that were parted from them."""
        ends = {op["in"]: out for out, op in self._ops.items() if is_end(op)}
        return frozenset([*outs, *(ends[out] for out in outs if out in ends)])

    def alone(self, outs: Sequence[int]) -> frozenset[int]:
        """Return outputs of layers, and of what makes for each of them alone the map that it reads.

        Real numbers of bytes are as wrong as these.
        """
        found = list(outs)
        for out in outs:
            value = self._ops[out]["in"]
            while value in self._for_one:
                found.append(value)
                value = self._ops[value]["in"] if is_end(self._ops[value]) else 0
        return self.whole(found)

    def layout(self, real: frozenset[int]) -> Layout:
        """Return which values are bytes while some operations stay real."""
        made = made_on_bytes(self.plan.steps, real)
        linears = {out for out, op in self.layers.items() if op["op"] == "linear" and out not in real}
        in_grids = {out: grid for out, grid in self.ranges.in_grids.items() if out in linears}
        # What stays real for its own error gains little if its weights are bytes.
        precise = frozenset(out for out in real if self.parts[out] == "trunk")
        return Layout(made=made, grids=self.ranges.grids, in_grids=in_grids, precise=precise)

    def plan_with(self, real: frozenset[int]) -> Plan:
        """Return the plan on bytes in which some operations stay real."""
        return byte_plan(self.plan, self.layout(real))

    def quantised(self, real: frozenset[int]) -> Quantised:
        """Return that plan, and how it came about."""
        return Quantised(plan=self.plan_with(real), layers=self.described(real), change=self.change(real))

    def change(self, real: frozenset[int]) -> Change:
        """Return how far the answers are from the real plan's."""
        if real not in self._changes:
            runner = TorchPlan(self.plan_with(real))
            shown = through(self.batches, "trying bytes", len(self.batches))
            said = [runner(images) for images in shown]
            change = change_between(self._said, said, num_exits=self.plan.num_exits)
            _log.info(
                "%d of %d layers real: %.2f %% of decisions and %.2f %% of predictions change",
                *(len(real & self.layers.keys()), len(self.layers)),
                *(100 * change.decisions, 100 * change.predictions),
            )
            self._changes[real] = change
            self.advance(1)
        return self._changes[real]

    def by_error(self) -> list[int]:
        """Return the outputs of the layers, from the largest error to the smallest."""
        return sorted(self.errors, key=lambda out: -self.errors[out])

    def described(self, real: frozenset[int]) -> list[Layer]:
        """Return all convolutions and linear layers."""
        layers = []
        for out, op in self._ops.items():
            if op["op"] not in ("conv", "linear"):
                continue
            is_real = out in real or out not in self.layers
            rule = self.ranges.rules.get(self.ranges.groups.get(out, -1))
            layers.append(
                Layer(
                    name=op["weight"],
                    part=self.parts[out],
                    is_real=is_real,
                    error=self.errors.get(out),
                    rule=None if is_real else rule,
                )
            )
        return layers


def _is_large(op: Op, plan: Plan) -> bool:
    return plan.tensors[op["weight"]].numel() >= _LARGE_LINEAR


def _errors(
    plan: Plan, layers: Mapping[int, Op], ranges: Calibrated, batches: Sequence[Tensor]
) -> dict[int, float]:
    """Return what bytes add to the output of every layer that some image reaches, if its input were exact."""
    shapes = TorchPlan(plan).shapes
    sums: dict[int, tuple[float, float]] = {}

    def observe(op: Op, values: Mapping[int, Tensor], out: Tensor) -> None:
        if op["out"] not in layers:
            return
        made = _on_bytes(op, values, plan, ranges, shapes)
        if made is not None:
            before = sums.get(op["out"], (0.0, 0.0))
            off, size = (x.double().square().sum().item() for x in (made - out, out))
            sums[op["out"]] = before[0] + off, before[1] + size

    runner = TorchPlan(plan, observe)
    for images in through(batches, "errors of bytes by layer", len(batches)):
        runner(images)
    return {out: (off / size) ** 0.5 if size else 0.0 for out, (off, size) in sums.items()}


def _on_bytes(
    op: Op, values: Mapping[int, Tensor], plan: Plan, ranges: Calibrated, shapes: Mapping[int, Shape]
) -> Tensor | None:
    """Return what an operation makes of real values when it runs on bytes, as real numbers."""
    weight, scale = quantised_weight(plan.tensors[op["weight"]])
    weights = {**plan.tensors, "weight": weight, "scale": scale}
    new: Op = op | {"weight": "weight", "weight_scale": "scale"}
    if op["op"] == "linear":
        grid = ranges.in_grids[op["out"]]
        new |= {"in_scale": grid.scale, "in_zero": grid.zero}
        return run_byte_op(new, Known(values=values, weights=weights, shapes=shapes, grids={}))
    read = [*maps_read(op), op["out"]]
    if any(value not in ranges.grids for value in read):
        return None
    grids = {value: ranges.grids[value] for value in read}
    bytes_read = {value: grids[value].to_bytes(values[value]) for value in maps_read(op)}
    known = Known(values=bytes_read, weights=weights, shapes=shapes, grids=grids)
    return grids[op["out"]].to_numbers(run_byte_op(new, known))
