"""Which part of a network every operation of its plan belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from sidestep.plan.byte_maps import KEEPING
from sidestep.plan.format import Op, Plan, Step, inputs_of, lists_of_ops

Part = Literal["first convolution", "routers", "exits", "head", "trunk"]
# What can stay real as a whole.
PARTS: tuple[Part, ...] = ("first convolution", "routers", "exits", "head")


def parts_of(plan: Plan) -> dict[int, Part]:
    """Return the part of a network that every operation belongs to, by its output.

    A router's or an exit's operations are those whose results nothing else reads; the head are linear layers
    that only the last logits are made of, and the trunk is all the rest.
    """
    readers = _readers(plan)
    images = images_of(plan.steps)
    return {
        op["out"]: _part(op, readers[op["out"]], images.issuperset(inputs_of(op)))
        for ops in lists_of_ops(plan.steps)
        for op in ops
    }


def _part(op: Op, readers: set[str], reads_image: bool) -> Part:
    if reads_image and op["op"] == "conv":
        return "first convolution"
    if readers == {"router"}:
        return "routers"
    if readers == {"exit"}:
        return "exits"
    return "head" if readers == {"output"} and op["op"] == "linear" else "trunk"


def _readers(plan: Plan) -> dict[int, set[str]]:
    """Return what reads a value in the end: routers, exits, the output, and choices their results."""
    found: dict[int, set[str]] = defaultdict(set)
    found[plan.document["output"]].add("output")
    for step in reversed(plan.steps):
        if "choose" in step:
            found[step["choose"]].add("router")
        if "exit" in step:
            found[step["exit"]["logits"]].add("exit")
        for value in (value for option in step.get("options", ()) for value in option["results"]):
            found[value].add("choice")
        for op in reversed([op for ops in lists_of_ops([step]) for op in ops]):
            for value in inputs_of(op):
                found[value] |= found[op["out"]]
    return found


def images_of(steps: list[Step]) -> set[int]:
    """Return the image and what is still one: moved, resized, or normalised anew."""
    found = {0}
    for op in _ops(steps):
        if op["op"] in (*KEEPING, "affine") and found.issuperset(inputs_of(op)):
            found.add(op["out"])
    return found


def _ops(steps: list[Step]) -> Iterator[Op]:
    return (op for ops in lists_of_ops(steps) for op in ops)
