"""Means over space or over tokens, which routers and heads read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

# Returns the (B, C) means of (B, C, H, W) maps.
SpatialMean = Callable[[Tensor], Tensor]


def spatial_mean(maps: Tensor) -> Tensor:
    """Return the (B, C) means of (B, C, H, W) maps."""
    return maps.mean((2, 3))


_spatial_mean: ContextVar[SpatialMean] = ContextVar("spatial mean", default=spatial_mean)


def global_average_pool(features: Tensor) -> Tensor:
    """Return the (B, C) means of (B, C, H, W) features over space, or of (B, N, C) tokens over all tokens."""
    return features.mean(1) if features.dim() == 3 else _spatial_mean.get()(features)


@contextmanager
def averaging_by(mean: SpatialMean) -> Iterator[None]:
    """Let `global_average_pool` compute means of maps in another way while this is open, in this thread.

    Args:
        mean: returns the same means; training knows a cheaper way to them than a layer can.
    """
    token = _spatial_mean.set(mean)
    try:
        yield
    finally:
        _spatial_mean.reset(token)
