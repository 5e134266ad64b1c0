"""A plan's operations made fewer; what they compute stays the same."""

from __future__ import annotations

import json
from collections import ChainMap, Counter
from collections.abc import MutableMapping
from typing import Any

from sidestep.plan.format import ACTIVATIONS, ENDS_IN_ACTIVATION, Op, Step, inputs_of, lists_of_ops


def simplify(steps: list[Step], output: int) -> tuple[list[Step], int]:
    """Return steps that compute the same with fewer operations, and the number of the output."""
    steps, numbers = simplified(steps, output)
    return steps, numbers[output]


def simplified(steps: list[Step], output: int) -> tuple[list[Step], dict[int, int]]:
    """Return steps that compute the same with fewer operations, and the new numbers of the values left.

    What is computed twice is computed once, what nothing reads not at all, and additions and ReLUs become
    part of the operation in front of them. Nothing moves into another step or option. Values are numbered
    anew, in the order in which they are defined. The steps that are given are used up.
    """
    for ops in lists_of_ops(steps):
        _resize_alike(ops)
    same = _merge_equal(steps)
    output = same.get(output, output)
    _drop_unread(steps, output)
    reads = _reads(steps, output)
    for ops in lists_of_ops(steps):
        ops[:] = _fused(ops, reads)
    steps = [step for step in steps if step.get("ops", True)]
    defined = (value for step in steps for value in _defined(step))
    numbers = {0: 0} | {value: number for number, value in enumerate(defined, start=1)}
    _rename(steps, numbers)
    repeated = {value: numbers[first] for value, first in same.items() if first in numbers}
    return steps, numbers | repeated


def _defined(step: Step) -> list[int]:
    ops = [op["out"] for ops in lists_of_ops([step]) for op in ops]
    return [*ops, *step.get("defines", ())]


def _read_by(step: Step) -> list[int]:
    """Return the values that a step reads outside of its operations."""
    values = [step["choose"]] if "choose" in step else []
    if "exit" in step:
        values.append(step["exit"]["logits"])
    return [*values, *(value for option in step.get("options", ()) for value in option["results"])]


def _reads(steps: list[Step], output: int) -> Counter[int]:
    """Return how often every value is read."""
    reads = Counter([output])
    for step in steps:
        reads.update(_read_by(step))
        reads.update(value for ops in lists_of_ops([step]) for op in ops for value in inputs_of(op))
    return reads


def _resize_alike(ops: list[Op]) -> None:
    """Let maps that are joined be resized to each other's size, which follows that of the image."""
    places = {op["out"]: place for place, op in enumerate(ops)}
    for op in ops:
        if op["op"] != "concat":
            continue
        resized = [v for v in op["in"] if v in places and "size" in ops[places[v]]]
        for value in resized:
            resize = ops[places[value]]
            others = (v for v in op["in"] if v not in resized and places.get(v, -1) < places[value])
            if (like := next(others, None)) is not None:
                del resize["size"]
                resize["like"] = like


def _merge_equal(steps: list[Step]) -> dict[int, int]:
    """Drop operations that repeat one before them; return which value stands for which now."""
    seen: dict[str, int] = {}
    same: dict[int, int] = {}
    for step in steps:
        _rename([step], same)
        for ops in lists_of_ops([step]):
            # What an option computes is not seen outside of it.
            known: MutableMapping[str, int] = seen if "ops" in step else ChainMap({}, seen)
            kept = []
            for op in ops:
                _rename_op(op, same)
                key = json.dumps({name: item for name, item in op.items() if name != "out"}, sort_keys=True)
                if key in known:
                    same[op["out"]] = known[key]
                else:
                    known[key] = op["out"]
                    kept.append(op)
            ops[:] = kept
        _rename([step], same)
    return same


def _drop_unread(steps: list[Step], output: int) -> None:
    needed = {output}
    for step in reversed(steps):
        needed.update(_read_by(step))
        for ops in lists_of_ops([step]):
            kept = []
            for op in reversed(ops):
                if op["out"] in needed:
                    needed.update(inputs_of(op))
                    kept.append(op)
            ops[:] = reversed(kept)


def _fused(ops: list[Op], reads: Counter[int]) -> list[Op]:
    """Return a list of operations with additions and ReLUs in the operation whose result they read."""
    done: list[Op] = []
    for op in ops:
        # Only what nothing else reads may change.
        makers = [next((m for m in done if m["out"] == v and reads[v] == 1), None) for v in inputs_of(op)]
        if op["op"] == "add" and (index := _free(makers)) is not None:
            maker = makers[index]
            assert maker is not None
            # The convolution goes on here, where what is added is there as well.
            done.remove(maker)
            done.append({**maker, "residual": op["in"][1 - index], "relu": op["relu"], "out": op["out"]})
        elif _is_relu(op) and makers[0] is not None and _ends_in_nothing(makers[0]):
            slope = {"slope": op["slope"]} if "slope" in op else {}
            makers[0].update(relu=True, out=op["out"], **slope)
        elif makers and makers[0] is not None and _may_end(op, makers[0]):
            makers[0].update(activation=op["function"], out=op["out"])
        else:
            done.append(op)
    return done


def _ends_in_nothing(op: Op) -> bool:
    return op.get("relu") is False and "activation" not in op


def _may_end(op: Op, maker: Op) -> bool:
    """Return whether an activation can be the end of the operation whose result it reads."""
    if maker["op"] not in ENDS_IN_ACTIVATION or not _ends_in_nothing(maker):
        return False
    return op["op"] in ("activate", "vmap") and op["function"] in ACTIVATIONS


def _is_relu(op: Op) -> bool:
    return "relu" in (op["op"], op.get("function"))


def _free(makers: list[Op | None]) -> int | None:
    """Return which of two summands is a convolution that can add the other one itself."""
    for index, maker in enumerate(makers):
        if maker is None or maker["op"] != "conv" or maker["residual"] is not None:
            continue
        if _ends_in_nothing(maker):
            return index
    return None


def _rename(steps: list[Step], numbers: dict[int, int]) -> None:
    """Give values other numbers wherever they are defined or read."""

    def new(values: list[int]) -> list[int]:
        return [numbers.get(value, value) for value in values]

    for step in steps:
        for ops in lists_of_ops([step]):
            for op in ops:
                _rename_op(op, numbers)
        if "exit" in step:
            (step["exit"]["logits"],) = new([step["exit"]["logits"]])
        if "choose" in step:
            (step["choose"],) = new([step["choose"]])
            step["defines"] = new(step["defines"])
            for option in step["options"]:
                option["results"] = new(option["results"])


def _rename_op(op: Op, numbers: dict[int, int]) -> None:
    def new(values: Any) -> Any:
        return (
            [numbers.get(v, v) for v in values] if isinstance(values, list) else numbers.get(values, values)
        )

    op.update({field: new(op[field]) for field in ("in", "out", "residual", "like") if field in op})
