"""What ATen's activations are in a plan, on maps and on vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from sidestep.plan.writer import Map, Vector, Writer

aten = torch.ops.aten

# By name, where a plan's name and ATen's differ by an underscore at most.
_NAMED = {
    aten.silu.default: "silu",
    aten.hardswish.default: "hard_swish",
    aten.hardsigmoid.default: "hard_sigmoid",
    aten.sigmoid.default: "sigmoid",
}


def _apply(
    function: str, writer: Writer, node: fx.Node, x: Map | Vector, *, slope: float = 0.0
) -> Map | Vector:
    """Write an activation and return its result."""
    fields = {"slope": slope} if slope else {}
    if isinstance(x, Vector):
        return writer.vector("vmap", writer.dense(x), x.codes.shape, function=function, **fields)
    if function == "relu":
        return writer.map("relu", writer.plain(x), **fields)
    return writer.map("activate", writer.plain(x), function=function)


def _gelu(writer: Writer, node: fx.Node, x: Map | Vector, *, approximate: str = "none") -> Map | Vector:
    return _apply("gelu_tanh" if approximate == "tanh" else "gelu", writer, node, x)


def _leaky_relu(writer: Writer, node: fx.Node, x: Map | Vector, slope: float = 0.01) -> Map | Vector:
    return _apply("relu", writer, node, x, slope=slope)


def _between(
    writer: Writer, node: fx.Node, x: Map | Vector, least: float | None = -1.0, most: float | None = 1.0
) -> Map | Vector:
    """Write a ReLU, or one that ends at 6."""
    if least != 0 or most not in (None, 6):
        raise writer.fail(f"cuts numbers off at {least} and {most}, and plans at 0 and 6; use ReLU or ReLU6")
    return _apply("relu" if most is None else "relu6", writer, node, x)


def _clamp(
    writer: Writer, node: fx.Node, x: Map | Vector, least: Any = None, most: Any = None
) -> Map | Vector:
    return _between(writer, node, x, least, most)


_ACTIVATIONS: dict[Any, Callable[..., Any]] = {
    **{target: partial(_apply, function) for target, function in _NAMED.items()},
    aten.relu.default: partial(_apply, "relu"),
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    aten.hardtanh.default: _between,
    aten.clamp.default: _clamp,
}
MAP_ACTIVATIONS: dict[Any, Callable[..., Any]] = _ACTIVATIONS | {aten.clamp_min.default: _clamp}
VECTOR_ACTIVATIONS: dict[Any, Callable[..., Any]] = _ACTIVATIONS
