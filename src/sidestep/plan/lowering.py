"""ATen graphs become operations of a plan, one node after the other."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sidestep.internals import UNSAFE_VIEW, tree_leaves, tree_map
from sidestep.plan.map_ops import MAP_OPS
from sidestep.plan.token_ops import VIEW_OPS, moved
from sidestep.plan.vector_ops import VECTOR_OPS, shape_of
from sidestep.plan.writer import Constant, Map, Traced, Vector, View, Writer

aten = torch.ops.aten

# Operations that look at the shape of their tensor alone.
_OF_SHAPE = {
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default),
}

# Operations that move entries and leave them as they are, and those among them that move none.
_SAME = {aten.clone.default, aten.detach.default, aten.alias.default}
_MOVING = _SAME | {
    *(aten.view.default, UNSAFE_VIEW.default, aten.reshape.default, aten.expand.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default),
    *(aten.permute.default, aten.transpose.int, aten.t.default, aten.flip.default, aten.repeat.default),
    *(aten.select.int, aten.slice.Tensor, aten.select_scatter.default, aten.slice_scatter.default),
    *(aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_split.Tensor, aten.unbind.int),
    *(aten.cat.default, aten.stack.default),
}


def lower(writer: Writer, graph: fx.GraphModule, inputs: Sequence[Traced]) -> list[tuple[Traced, Tensor]]:
    """Write the operations of a graph, and return its results, each with an example of its shape.

    Args:
        writer: of the plan.
        graph: of ATen operations that are not in place; its result is a list of tensors.
        inputs: what the graph's inputs are in the plan.

    Raises:
        ExportError: for an operation that no plan has.
    """
    given = iter(inputs)
    known: dict[fx.Node, Any] = {}
    results: list[tuple[Traced, Tensor]] = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(given)
        elif node.op == "get_attr":
            known[node] = Constant(operator.attrgetter(node.target)(graph))
        elif node.op == "output":
            results = [(known[out], _example(known[out], out)) for out in node.args[0]]
        else:
            known[node] = _lower_node(writer, node, known)
    return results


def _example(traced: Traced, node: fx.Node) -> Tensor:
    return traced.tensor if isinstance(traced, Constant) else torch.zeros(shape_of(node))


def _lower_node(writer: Writer, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return what a node computes: a traced tensor, or a list of them."""
    target: Any = node.target
    args, kwargs = tree_map(lambda arg: known.get(arg, arg), (tuple(node.args), dict(node.kwargs)))
    if target is operator.getitem:
        return args[0][args[1]]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Traced)]
    # Attention, which checks that itself, draws numbers for dropout alone.
    if torch.Tag.nondeterministic_seeded in target.tags and target not in VIEW_OPS:
        raise writer.fail(f"draws random numbers by {target}, and plans draw none; leave noise to training")
    if target in _OF_SHAPE or all(isinstance(tensor, Constant) for tensor in tensors):
        return _now(target, args, kwargs, node)
    of_views = any(isinstance(tensor, View) for tensor in tensors)
    of_maps = of_views or any(isinstance(tensor, Map) for tensor in tensors)
    if of_maps and target in _SAME:
        return args[0]
    if not of_maps and target in _MOVING:
        return _moved(writer, target, args, kwargs)
    lowered = (VIEW_OPS if of_views else MAP_OPS if of_maps else VECTOR_OPS).get(target)
    if lowered is None and target in _MOVING and len(tensors) == 1:
        return moved(writer, node, target, *args, **kwargs)
    if lowered is None:
        kind = "maps" if of_maps else "vectors"
        raise writer.fail(
            f"uses {target} on {kind}, and plans have no operation for that; replace it in the network"
        )
    return lowered(writer, node, *args, **kwargs)


def _now(target: Any, args: Any, kwargs: Any, node: fx.Node) -> Any:
    """Return the result of an operation on constants, or on shapes alone."""

    def tensor_of(leaf: Any) -> Any:
        if isinstance(leaf, Map | View | Vector):
            return torch.zeros(shape_of(node.all_input_nodes[0]))
        return leaf.tensor if isinstance(leaf, Constant) else leaf

    with torch.no_grad():
        result = target(*tree_map(tensor_of, args), **tree_map(tensor_of, kwargs))
    return tree_map(lambda leaf: Constant(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _moved(writer: Writer, target: Any, args: Any, kwargs: Any) -> Any:
    """Return rearranged vectors: their codes move as the numbers would."""

    def codes_of(leaf: Any) -> Any:
        return writer.as_vector(leaf).codes if isinstance(leaf, Traced) else leaf

    result = target(*tree_map(codes_of, args), **tree_map(codes_of, kwargs))
    return tree_map(lambda leaf: Vector(leaf) if isinstance(leaf, Tensor) else leaf, result)
