"""Nests of tensors with one row per image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sidestep.internals import tree_map


def take_rows(nest: Any, rows: Tensor) -> Any:
    """Return the same nest of lists, tuples and dicts with some rows of every tensor.

    A tensor that stands in several places is indexed once; what is no tensor stays as it is.

    Args:
        nest: of tensors whose first dimension is the batch.
        rows: (A,) indices of images, or (B,) booleans.
    """
    taken: dict[int, Tensor] = {}

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in taken:
            # Indexing keeps channels_last; index_select returns contiguous maps, which convolutions reorder.
            taken[id(leaf)] = leaf[rows]
        return taken[id(leaf)]

    return tree_map(take, nest)
