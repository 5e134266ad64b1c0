"""Pieces of a network, traced to ATen operations and lowered to operations of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from sidestep.internals import tree_flatten, tree_unflatten, writes_in_place
from sidestep.plan.lowering import lower
from sidestep.plan.writer import Constant, Map, Traced, Writer

# What a state may hold beside tensors; anything else could hide tensors that differ between images.
_PLAIN = (nn.Module, bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class SymbolicTensor:
    """A tensor between two pieces.

    Attributes:
        traced: what it is in the plan.
        example: of its shape.
    """

    traced: Traced
    example: Tensor


def call(writer: Writer, place: str, function: Callable[..., Any], *args: Any) -> Any:
    """Write what a piece of a network computes, and return its result with every tensor symbolic.

    Args:
        writer: of the plan.
        place: what the piece is called in errors.
        function: runs the piece for a batch of one image.
        args: nests of symbolic tensors and of what the plan does not know (modules, indices, None).

    Raises:
        ExportError: naming the place and the operation that no plan has.
    """
    leaves, spec = tree_flatten(args)
    symbolic = [leaf for leaf in leaves if isinstance(leaf, SymbolicTensor)]
    nest: list[Any] = []

    def piece(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, SymbolicTensor) else leaf for leaf in leaves]
        nest[:] = tree_flatten(function(*tree_unflatten(filled, spec)))
        return [leaf for leaf in nest[0] if _computed(writer, leaf)]

    with writer.at(place):
        graph = _trace(writer, piece, [leaf.example for leaf in symbolic])
        results = iter(lower(writer, graph, [leaf.traced for leaf in symbolic]))
        found, found_spec = nest
        return tree_unflatten(
            [
                _symbolic(*next(results)) if _computed(writer, leaf) else _checked(writer, leaf)
                for leaf in found
            ],
            found_spec,
        )


def symbolic_image(size: tuple[int, int], channels: int = 3) -> SymbolicTensor:
    """Return the image, which is value 0 of every plan."""
    return SymbolicTensor(Map(0), torch.zeros(1, channels, *size))


def traced_of(tensor: SymbolicTensor | Tensor) -> Traced:
    """Return what a result of `call` is in the plan."""
    return tensor.traced if isinstance(tensor, SymbolicTensor) else Constant(tensor)


def _trace(writer: Writer, piece: Callable[..., Any], examples: Sequence[Tensor]) -> fx.GraphModule:
    """Return the piece as a graph of ATen operations none of which works in place."""
    try:
        with torch.no_grad():
            # Composite operations decompose below functionalization, so it gets the decomposed graph.
            graph: fx.GraphModule = make_fx(piece)(*examples)
            if any(writes_in_place(node.target) for node in graph.graph.nodes):
                graph = make_fx(functionalize(graph))(*examples)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise writer.fail(f"cannot be traced: {first}; compute it from tensors alone") from error
    return graph


def _computed(writer: Writer, leaf: Any) -> bool:
    """Return whether a leaf is a tensor that the piece has made, not a weight that it hands on."""
    return isinstance(leaf, Tensor) and not writer.weights.knows(leaf)


def _symbolic(traced: Traced, example: Tensor) -> SymbolicTensor | Tensor:
    return traced.tensor if isinstance(traced, Constant) else SymbolicTensor(traced, example)


def _checked(writer: Writer, leaf: Any) -> Any:
    if isinstance(leaf, (Tensor, *_PLAIN)):
        return leaf
    raise writer.fail(
        f"returns a {type(leaf).__name__}, which may hide tensors; return tuples, lists or dicts of tensors"
    )
