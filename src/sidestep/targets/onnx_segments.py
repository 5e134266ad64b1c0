"""Segments as ONNX files that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sidestep.targets.map_shapes import Shape
from sidestep.targets.onnx_graph import OnnxGraph, SharedWeights
from sidestep.targets.onnx_ops import write_op
from sidestep.targets.segments import CHOICE, Branch


def value_name(value: int) -> str:
    """Return what graphs and manifests call a value."""
    return f"v{value}" if value else "images"


# Channels of which ONNX Runtime's own layout of maps has multiples.
_BLOCK = 16


def _added(branch: Branch) -> list[int]:
    """Return the maps that convolutions of a branch add to their results."""
    return sorted({op["residual"] for op in branch.ops if op.get("residual") is not None})


def branch_model(
    branch: Branch,
    name: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[int, Shape],
    shared: SharedWeights | None,
) -> bytes:
    """Return the ONNX file of a branch.

    Its inputs are what it reads, its outputs what it gives, in order, all with an open number of images.

    Args:
        branch: that gives something.
        name: of the graph.
        tensors: weights of the plan.
        shapes: of all values, those of decisions included.
        shared: where large weights lie, or None for the file itself.
    """
    graph = OnnxGraph(tensors, shapes, shared)
    names = {value: value_name(value) for value in branch.reads}
    graph.first = names[branch.reads[0]]
    for value in _added(branch):
        if value in names and shapes[value][0] % _BLOCK == 0:
            # Nothing but a change of layout: runtimes add in that of their convolutions what has it.
            names[value] = graph.node("MaxPool", [names[value]], kernel_shape=[1, 1])
    whole = {op["out"] for op in branch.ops if op["op"] == CHOICE}
    for op in branch.ops:
        names[op["out"]] = write_op(graph, op, names)
    outputs = []
    for value, held in branch.gives.items():
        found, shape = names[held], shapes[value]
        if held in graph.constant_values:
            found = graph.spread(found, shape)
        graph.yields(found, value_name(value))
        outputs.append((value_name(value), shape, "int64" if held in whole else "float"))
    return graph.model(name, [(value_name(value), shapes[value], "float") for value in branch.reads], outputs)
