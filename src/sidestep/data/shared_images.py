"""Decoded images that the trainings of a process have in common."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from sidestep.data.data_config import DataConfig
from sidestep.data.decode import Framing
from sidestep.data.image_set import Indices
from sidestep.data.split import Split

# (N, C, H, W) uint8 images and (N,) labels.
Pixels = tuple[Tensor, Tensor]

_lock = threading.Lock()
_kept: dict[str, Pixels] | None = None


@contextmanager
def shared_images() -> Iterator[None]:
    """Decode the same images once for all trainings inside, one after the other or in threads.

    Sweeps train many recipes on one set, and decoding CIFAR takes as long as an epoch on a GPU. Only sets
    that lie in memory are kept, until the end.
    """
    global _kept
    if _kept is not None:
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def decoded_once(
    split: Split, framing: Framing, indices: Indices, config: DataConfig, decode: Callable[[], Pixels]
) -> Pixels:
    """Return what `decode` returns, or has returned for the same images inside of `shared_images`.

    Args:
        split: whose images they are.
        framing: how they are prepared.
        indices: which.
        config: says where they come from, and their classes.
        decode: called without arguments.
    """
    if _kept is None:
        return decode()
    said = (config.source, config.settings, config.classes, config.class_indices, split.name, framing)
    key = f"{said} {hashlib.sha256(indices.tobytes()).hexdigest()}"
    with _lock:
        if key not in _kept:
            _kept[key] = decode()
        return _kept[key]
