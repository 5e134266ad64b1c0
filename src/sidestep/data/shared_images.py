"""Images that the commands of a process have in common: opened, known by their content and decoded once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from sidestep.data.data_config import DataConfig
from sidestep.data.decode import Framing
from sidestep.data.image_set import Indices
from sidestep.data.split import Role, Split, content_of

# (N, C, H, W) uint8 images and (N,) labels.
Pixels = tuple[Tensor, Tensor]
_Made = TypeVar("_Made")

_lock = threading.RLock()
_kept: dict[str, Any] | None = None


@contextmanager
def shared_images() -> Iterator[None]:
    """Open and decode the same images once for all trainings or reports inside, in turn or in threads.

    Sweeps train many recipes on one set, and decoding CIFAR takes as long as an epoch on a GPU; reports look
    at the same images with many runs. Of decoded sets only those that lie in memory are kept, until the end.
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


def opened_once(config: DataConfig, role: Role, open_it: Callable[[], Split | None]) -> Split | None:
    """Return what `open_it` returns, or has returned for the same split inside of `shared_images`.

    Args:
        config: says where the images come from.
        role: of the split.
        open_it: called without arguments.
    """
    return _once(f"opened {config.source} {config.settings} {role}", open_it)


def content_once(split: Split, config: DataConfig) -> str:
    """Return `content_of` a split, which is looked at once inside of `shared_images`.

    Args:
        split: whose images are looked at.
        config: says where they come from.
    """
    return _once(f"content {config.source} {config.settings} {split.name}", lambda: content_of(split))


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
    said = (config.source, config.settings, config.classes, config.class_indices, split.name, framing)
    return _once(f"{said} {hashlib.sha256(indices.tobytes()).hexdigest()}", decode)


def _once(key: str, make: Callable[[], _Made]) -> _Made:
    if _kept is None:
        return make()
    with _lock:
        if key not in _kept:
            _kept[key] = make()
        made: _Made = _kept[key]
        return made
