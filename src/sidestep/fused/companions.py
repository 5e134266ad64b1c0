"""What an operation makes along with a feature map, for the operations that follow it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_NAME = "sidestep_companions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Tensors that belong to a map and have gradients of their own.

    The operation that made them adds these to the map's gradient in a pass that it takes anyway. Autograd
    would add them one after the other, each in a pass over memory.

    Attributes:
        means: (B, C) means of the map over space.
        twin: the map once more, in the same memory, for the shortcut of the next unit.
    """

    means: Tensor
    twin: Tensor


def attach(features: Tensor, companions: Companions) -> Tensor:
    """Return the same features, with companions that `companions_of` finds."""
    setattr(features, _NAME, companions)
    return features


def companions_of(features: Tensor) -> Companions | None:
    """Return the companions of features, or None where the operation that made them made none."""
    found: Companions | None = getattr(features, _NAME, None)
    return found
