"""A plan in which maps are bytes, given the ranges of its values and what stays real."""

from __future__ import annotations

import copy
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sidestep.layers.fake_bytes import weight_scale
from sidestep.plan.byte_maps import KEEPING, Grid, code
from sidestep.plan.format import Op, Plan, Step, inputs_of, lists_of_ops, version_of, weights_of
from sidestep.quantisation.plan_parts import images_of
from sidestep.targets.torch_ops import ended

# What may run on bytes; other operations get real maps.
ON_BYTES = ("conv", "affine", "add", "scale", "activate", *KEEPING)
# Of fewer real weights, or fewer of each output, scales would take the room that int8 saves.
_FEWEST_WEIGHTS, _FEWEST_INPUTS = 512, 8
# What reads maps of either kind, whole ones.
_READS_BOTH = ("gap", "flatten")
# Which activations bytes can end in by being cut off.
_CUT = (None, "relu6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which values of a plan are bytes.

    Attributes:
        made: values that are made as bytes.
        grids: of these, and of real values that operations on bytes read.
        in_grids: of the vectors that linear layers with bytes as weights read, by the layers' outputs.
        precise: outputs of layers whose weights are float32 in the file too, since bytes cost accuracy there.
    """

    made: frozenset[int]
    grids: Mapping[int, Grid]
    in_grids: Mapping[int, Grid] = field(default_factory=dict)
    precise: frozenset[int] = frozenset()

    def own(self, value: int) -> Grid | None:
        """Return the grid of a value that is made as bytes, or None where it is real."""
        return self.grids[value] if value in self.made else None


def spread_out(plan: Plan) -> Plan:
    """Return the same plan with activations that bytes need tables for as operations of their own."""
    steps = copy.deepcopy(plan.steps)
    fresh = iter(range(1 + max(_defined(steps), default=0), 1 << 40))
    for ops in lists_of_ops(steps):
        ops[:] = [part for op in ops for part in _parted(op, fresh)]
    return Plan(document=plan.document | {"steps": steps}, tensors=plan.tensors)


def _defined(steps: Sequence[Step]) -> list[int]:
    made = [op["out"] for ops in lists_of_ops(list(steps)) for op in ops]
    return [*made, *(value for step in steps for value in step.get("defines", ()))]


def _parted(op: Op, fresh: Iterator[int]) -> list[Op]:
    """Return an operation, or what stands in front of its activation and that."""
    leaky = op.get("relu") and op.get("slope")
    if op["op"] not in ("conv", "affine", "add") or (op.get("activation") in _CUT and not leaky):
        return [op]
    between = next(fresh)
    ends = ("relu", "slope", "activation")
    first = {key: item for key, item in op.items() if key not in ends} | {"relu": False, "out": between}
    last: Op = (
        {"op": "relu", "slope": op["slope"]} if leaky else {"op": "activate", "function": op["activation"]}
    )
    return [first, last | {"in": between, "out": op["out"]}]


def made_on_bytes(steps: list[Step], real: frozenset[int] = frozenset()) -> frozenset[int]:
    """Return the values that are made as bytes: by operations on bytes, or by choices among such.

    What only prepares the image, in front of the first convolution, stays real.

    Args:
        steps: of a plan that is spread out.
        real: outputs of operations that stay real whatever they are.
    """
    images, reads = images_of(steps), reads_of(steps)
    found: set[int] = set()
    for step in steps:
        for ops in lists_of_ops([step]):
            convolutions = {op["out"] for op in ops if op["op"] == "conv" and reads[op["out"]] == 1}
            for op in ops:
                if op["out"] in images or op["out"] in real or not _may_be_bytes(op):
                    continue
                # A table can be the end of a convolution alone.
                leaky = op["op"] == "relu" and op.get("slope")
                if not leaky or op["in"] in convolutions & found:
                    found.add(op["out"])
        if "choose" in step:
            for place, value in enumerate(step["defines"]):
                if any(option["results"][place] in found for option in step["options"]):
                    found.add(value)
    return frozenset(found)


def _may_be_bytes(op: Op) -> bool:
    return op["op"] in ON_BYTES and not op.get("antialias")


def reads_of(steps: list[Step]) -> Counter[int]:
    """Return how many operations read every value."""
    return Counter(value for ops in lists_of_ops(steps) for op in ops for value in inputs_of(op))


def byte_plan(plan: Plan, layout: Layout) -> Plan:
    """Return a plan on bytes, of version 3 or 5.

    Args:
        plan: real, and spread out.
        layout: which of its values are bytes, and their grids.
    """
    writer = _ByteWriter(plan, layout)
    steps = writer.steps()
    used = {name for ops in lists_of_ops(steps) for op in ops for name in weights_of(op)}
    document = plan.document | {
        "version": version_of(steps),
        "steps": steps,
        "output": writer.find(plan.document["output"], None),
    }
    tensors = {name: tensor for name, tensor in writer.tensors.items() if name in used}
    return Plan(document=document, tensors=tensors)


class _ByteWriter:
    """Writes the steps of a real plan anew; every value may be there as real numbers and as bytes.

    Attributes:
        tensors: of the new plan, and those that it no longer needs.
    """

    def __init__(self, plan: Plan, layout: Layout) -> None:
        self.plan, self.layout = plan, layout
        self.tensors = dict(plan.tensors)
        self._reads = reads_of(plan.steps)
        self._num_values = 1
        # The number in the new plan of a value of the old one, as bytes of a grid or as it is.
        self._known: MutableMapping[tuple[int, Grid | None], int] = {(0, None): 0}
        self._ops: list[Op] = []

    def steps(self) -> list[Step]:
        """Return the new steps."""
        done: list[Step] = []
        for step in self.plan.steps:
            with self._list() as ops:
                if "choose" in step:
                    # What is handed on as it is turns into bytes here, not in the option that skips.
                    self._hand_on(step)
                else:
                    self._write_all(step.get("ops", ()))
            if ops and done and "ops" in done[-1]:
                done[-1]["ops"] += ops
            else:
                done += [{"ops": ops}] if ops else []
            if "choose" in step:
                done.append(self._choice(step))
            if "exit" in step:
                done.append({"exit": step["exit"] | {"logits": self.find(step["exit"]["logits"], None)}})
        return done

    def find(self, value: int, grid: Grid | None) -> int:
        """Return a value of the old plan, turned into bytes of a grid or into real numbers if it is not."""
        if (value, grid) in self._known:
            return self._known[value, grid]
        source, number = self._known[value, self.layout.own(value)], self._number()
        kind = {"op": "dequantize"} if grid is None else {"op": "quantize", **_fields(grid)}
        self._ops.append(kind | {"in": source, "out": number})
        self._known[value, grid] = number
        return number

    @contextmanager
    def _list(self) -> Iterator[list[Op]]:
        """Yield a list into which operations are written inside."""
        before, self._ops = self._ops, []
        yield self._ops
        self._ops = before

    def _number(self) -> int:
        number, self._num_values = self._num_values, self._num_values + 1
        return number

    def _hand_on(self, step: Step) -> None:
        for option in step["options"]:
            inside = {op["out"] for op in option["ops"]}
            for value, result in zip(step["defines"], option["results"], strict=True):
                if result not in inside:
                    self.find(result, self.layout.own(value))

    def _choice(self, step: Step) -> Step:
        new: Step = {"choose": self.find(step["choose"], None), "options": [], "defines": []}
        outside = self._known
        for option in step["options"]:
            self._known = ChainMap({}, outside)
            with self._list() as ops:
                self._write_all(option["ops"])
                pairs = zip(step["defines"], option["results"], strict=True)
                results = [self.find(result, self.layout.own(value)) for value, result in pairs]
            new["options"].append({"ops": ops, "results": results})
        self._known = outside
        for value in step["defines"]:
            number = self._known[value, self.layout.own(value)] = self._number()
            new["defines"].append(number)
        return new

    def _write_all(self, ops: Sequence[Op]) -> None:
        ends = {op["in"]: op for op in ops if is_end(op) and self._reads[op["in"]] == 1}
        joined = {
            op["out"]: whole for op in ops if (whole := self._joined(op, ends.get(op["out"]))) is not None
        }
        skipped = {ends[value]["out"] for value in joined}
        for op in ops:
            # The whole stands where its end stood, in front of whatever reads it.
            if op["out"] in skipped:
                self._write(joined[op["in"]])
            elif op["out"] not in joined:
                self._write(op)

    def _joined(self, op: Op, end: Op | None) -> Op | None:
        """Return an operation with the activation behind it as its end, or None where it cannot have that."""
        if end is None or op["op"] not in ("conv", "affine", "add") or not _ends_in_nothing(op):
            return None
        grids = [self.layout.own(each["out"]) for each in (op, end)]
        whole = op | {"out": end["out"]}
        whole |= (
            {"relu": True, "slope": end["slope"]} if end["op"] == "relu" else {"activation": end["function"]}
        )
        inner, grid = grids
        if inner is None and grid is None:
            return whole
        if op["op"] != "conv" or inner is None or grid is None:
            return None
        table = self._store(f"{op['weight']}.table", table_of(whole, inner, grid))
        return whole | {"table": table, "inner_scale": inner.scale, "inner_zero": inner.zero}

    def _write(self, op: Op) -> None:
        """Write an operation whose values are those of the old plan."""
        grid = self.layout.own(op["out"])
        new = op | {
            name: self._inputs(op, name) for name in ("in", "residual", "like") if op.get(name) is not None
        }
        if op["op"] == "linear" and op["out"] in self.layout.in_grids:
            new |= self._byte_linear(op)
        elif grid is not None:
            new |= self._byte_fields(op, grid)
        elif op["op"] in ("conv", "linear") and self._is_worth_bytes(op):
            new |= self._byte_weight(op["weight"])
        new["out"] = self._number()
        self._ops.append(new)
        self._known[op["out"], grid] = new["out"]

    def _inputs(self, op: Op, name: str) -> int | list[int]:
        """Return what a field of an operation names, in the new plan."""
        item = op[name]
        if isinstance(item, list):
            return [self._input(op, value) for value in item]
        return self._input(op, item)

    def _input(self, op: Op, value: int) -> int:
        made = self.layout.own(op["out"])
        if (op["op"] in _READS_BOTH and "rows" not in op) or value == op.get("like"):
            return self.find(value, self.layout.own(value))
        if made is None or (op["op"] == "scale" and value == op["in"][1]):
            return self.find(value, None)
        return self.find(value, made if op["op"] in KEEPING else self.layout.grids[value])

    def _byte_fields(self, op: Op, grid: Grid) -> dict[str, Any]:
        """Return what an operation on bytes has beside its fields."""
        if op["op"] in KEEPING:
            return {}
        if op["op"] == "conv":
            return _fields(grid) | self._byte_weight(op["weight"])
        if op["op"] == "activate":
            table = table_of({"activation": op["function"]}, self.layout.grids[op["in"]], grid)
            return _fields(grid) | {"table": self._store(f"table.{op['out']}", table)}
        return _fields(grid)

    def _byte_linear(self, op: Op) -> dict[str, Any]:
        grid = self.layout.in_grids[op["out"]]
        return self._byte_weight(op["weight"]) | {"in_scale": grid.scale, "in_zero": grid.zero}

    def _is_worth_bytes(self, op: Op) -> bool:
        return op["out"] not in self.layout.precise and are_worth_bytes(self.plan.tensors[op["weight"]])

    def _byte_weight(self, name: str) -> dict[str, str]:
        weight, scale = quantised_weight(self.plan.tensors[name])
        return {
            "weight": self._store(f"{name}.int8", weight),
            "weight_scale": self._store(f"{name}.scale", scale),
        }

    def _store(self, name: str, tensor: Tensor) -> str:
        while name in self.tensors and not torch.equal(self.tensors[name], tensor):
            name = f"{name}.{len(self.tensors)}"
        self.tensors[name] = tensor
        return name


def _fields(grid: Grid) -> dict[str, Any]:
    return {"scale": grid.scale, "zero": grid.zero}


def is_end(op: Op) -> bool:
    """Return whether an operation is an activation that bytes need a table for."""
    return op["op"] == "activate" or (op["op"] == "relu" and bool(op.get("slope")))


def _ends_in_nothing(op: Op) -> bool:
    return not op.get("relu") and op.get("activation") is None


def are_worth_bytes(weight: Tensor) -> bool:
    """Return whether (O, ...) real weights take less room as int8 with a scale for every output."""
    return weight[0].numel() >= _FEWEST_INPUTS and weight.numel() >= _FEWEST_WEIGHTS


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (O, ...) int8 weights in [-127, 127] and the (O) float32 numbers that their steps stand for."""
    rows, scale = weight.flatten(1), weight_scale(weight)
    steps = (rows / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return steps.view(weight.shape), scale


def table_of(end: Mapping[str, Any], inner: Grid, grid: Grid) -> Tensor:
    """Return the 256 bytes that an activation makes of bytes.

    Args:
        end: the activation, in the fields of an operation.
        inner: the numbers that the bytes stand for.
        grid: those that the table's entries stand for.
    """
    numbers = inner.to_numbers(torch.arange(256, dtype=torch.uint8)).double()
    return code(ended(dict(end), numbers) / grid.scale + grid.zero)
