"""The one reader and writer of weights: safetensors with JSON in the header, replaced in one step.

Tensors and everything else that a run needs to go on (recipe, position, best score) live in the same file,
so that a single rename replaces both and no crash can leave a pair that does not belong together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sidestep.errors import CheckpointError
from sidestep.files import read_safetensors, write_file

_KEY = "sidestep"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Named tensors and the plain values that go with them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def section(self, name: str) -> dict[str, Tensor]:
        """Return the tensors below `name.`, without that prefix."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at every moment either the old or the new one is there, whole.

    Raises:
        CheckpointError: when it cannot be written, a full disk for example; the old file is untouched.
    """
    values = json.dumps({"version": VERSION, **checkpoint.values})
    # Copies: safetensors refuses tensors that share memory, as routers that share weights have them.
    tensors = {
        key: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, t in checkpoint.tensors.items()
    }
    write_file(
        path,
        save(tensors, metadata={_KEY: values}),
        what="checkpoint",
        way_out="the one before it is untouched, free some space and resume",
        error=CheckpointError,
    )


def is_checkpoint(path: Path) -> bool:
    """Return whether a file of weights was written by `save_checkpoint`, as far as its header says."""
    return path.suffix == ".safetensors" and path.is_file() and _KEY in read_safetensors(path)[1]


def load_checkpoint(path: Path) -> Checkpoint:
    """Return what `save_checkpoint` wrote.

    Raises:
        CheckpointError: when the file is missing, damaged, or not a checkpoint of sidestep.
    """
    tensors, metadata = read_safetensors(path)
    try:
        values = json.loads(metadata[_KEY])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} was not written by sidestep: its header lacks the run's values; "
            "static weights belong into model.init"
        ) from error
    if not isinstance(values, dict) or values.get("version") != VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise CheckpointError(
            f"checkpoint {path} must have version {VERSION}, got {found}; "
            "use the release of sidestep that wrote it"
        )
    return Checkpoint(tensors=tensors, values=values)
