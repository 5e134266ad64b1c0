"""The shapes of a plan's values for images of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from sidestep.plan.format import Op, Plan

# (C, H, W) of a map, (C,) of a vector; without the batch.
Shape = tuple[int, ...]


def shapes_of(plan: Plan) -> dict[int, Shape]:
    """Return the shape of every value of a plan, those inside of options included, without the batch."""
    images = plan.document["input"]
    shapes: dict[int, Shape] = {0: (images["channels"], *images["size"])}
    for step in plan.steps:
        add_shapes(shapes, step.get("ops", ()), plan.tensors)
        for option in step.get("options", ()):
            add_shapes(shapes, option["ops"], plan.tensors)
            shapes |= {
                value: shapes[result]
                for value, result in zip(step["defines"], option["results"], strict=True)
            }
    return shapes


def add_shapes(shapes: dict[int, Shape], ops: Iterable[Op], tensors: Mapping[str, Tensor]) -> None:
    """Add the shapes of what operations compute to those of what they read."""
    for op in ops:
        read = op.get("in", [])
        given = [shapes[value] for value in ([read] if isinstance(read, int) else read)]
        shape: Callable[..., Shape] = _SHAPES.get(op["op"], _as_it_was)
        shapes[op["out"]] = shape(op, given, shapes, tensors)


def rows_of(op: Op, size: int, kernel: int) -> int:
    """Return the rows, or columns, that a convolution or a pooling makes of some."""
    if op.get("same"):
        return -(-size // int(op["stride"]))
    room = size + 2 * int(op.get("padding", 0)) - kernel
    return (-(-room // int(op["stride"])) if op.get("ceil") else room // int(op["stride"])) + 1


def multiply_adds(op: Op, shapes: Mapping[int, Shape], tensors: Mapping[str, Tensor]) -> int:
    """Return the multiply-adds of an operation; those of convolutions and linear layers count."""
    if op["op"] not in ("conv", "linear"):
        return 0
    out = shapes[op["out"]]
    area = out[1] * out[2] if len(out) == 3 else 1
    return tensors[op["weight"]].numel() * area


def _as_it_was(op: Op, given: list[Shape], *rest: Any) -> Shape:
    return max(given, key=lambda shape: shape[0])


def _conv(op: Op, given: list[Shape], shapes: Any, tensors: Mapping[str, Tensor]) -> Shape:
    weight = tensors[op["weight"]].shape
    return weight[0], rows_of(op, given[0][1], weight[2]), rows_of(op, given[0][2], weight[3])


def _pool(op: Op, given: list[Shape], *rest: Any) -> Shape:
    (channels, *sides), kernel = given[0], op["kernel"]
    return channels, *(rows_of(op, side, kernel) for side in sides)


def _pad(op: Op, given: list[Shape], *rest: Any) -> Shape:
    channels, *sides = given[0]
    return channels + op["before"] + op["after"], *(-(-side // op["stride"]) for side in sides)


def _sized(op: Op, given: list[Shape], shapes: Mapping[int, Shape], tensors: Any) -> Shape:
    sides = shapes[op["like"]][1:] if op.get("like") is not None else tuple(op["size"])
    return given[0][0], *sides


def _flat(op: Op, given: list[Shape], *rest: Any) -> Shape:
    channels, *sides = given[0]
    for side in sides:
        channels *= side
    return (channels,)


_SHAPES: dict[str, Callable[..., Shape]] = {
    "conv": _conv,
    "max_pool": _pool,
    "avg_pool": _pool,
    "pad": _pad,
    "crop": _sized,
    "resize": _sized,
    "scale": lambda op, given, *rest: given[0],
    "concat": lambda op, given, *rest: (sum(shape[0] for shape in given), *given[0][1:]),
    "gap": lambda op, given, *rest: given[0][:1],
    "layer_norm": lambda op, given, *rest: given[0],
    "tokens": lambda op, given, shapes, tensors: (given[0][0], tensors[op["weight"]].shape[0], 1),
    "attention": lambda op, given, *rest: (given[0][0] // 3, *given[0][1:]),
    "flatten": _flat,
    "linear": lambda op, given, shapes, tensors: (tensors[op["weight"]].shape[0],),
    "vconst": lambda op, given, shapes, tensors: (tensors[op["weight"]].shape[0],),
    "vgather": lambda op, *rest: (len(op["indices"]),),
    "vsum": lambda op, *rest: (1,),
    "choice": lambda op, *rest: (),
    "doubt": lambda op, *rest: (),
    "label": lambda op, *rest: (1,),
}
