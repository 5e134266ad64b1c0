"""Weight files as training scripts leave them: read whole, and searched for the tensors of one network."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import CheckpointError
from sidestep.files import read_safetensors

# What wrappers of torch put into the names of the modules that they wrap.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# Where a file has the same network twice: averages of its weights are what was evaluated, and are taken
# before the weights, and these before what an average or a teacher was made from.
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|teacher)([._]|$)")
_RAW = re.compile(r"(^|[._])(raw|student)([._]|$)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors or torch file; nests of it are parts of the names ("state_dict.").

    Raises:
        CheckpointError: when the file is missing or damaged, or has no tensors with names.
    """
    if path.is_dir():
        raise CheckpointError(
            f"weights {path} must be a file, got a folder; of a run take best.safetensors in it"
        )
    tensors = read_safetensors(path)[0] if _is_safetensors(path) else dict(_flat(_read_torch(path)))
    if not tensors:
        raise CheckpointError(f"weights {path} hold no tensors by name; save a state dict as safetensors")
    return tensors


def below(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return what there is below every beginning of the names that ends with a dot, "" included."""
    found: dict[str, dict[str, Tensor]] = {"": dict(tensors)}
    for name, tensor in tensors.items():
        for match in re.finditer(r"\.", name):
            found.setdefault(name[: match.end()], {})[name[match.end() :]] = tensor
    return found


def without_wrappers(name: str, known: set[str]) -> str:
    """Return a name without the modules that wrap others, unless the network has parts of that name."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS or part in known)


def preference(beginning: str) -> int:
    """Return how late it is that what lies below a beginning is taken, 0 to 2."""
    return 0 if _AVERAGE.search(beginning) else 2 if _RAW.search(beginning) else 1


def _flat(nest: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(nest, Tensor):
        yield name, nest
    elif isinstance(nest, Mapping | list | tuple):
        parts = nest.items() if isinstance(nest, Mapping) else enumerate(nest)
        for key, value in parts:
            yield from _flat(value, f"{name}.{key}" if name else str(key))


def _is_safetensors(path: Path) -> bool:
    """Return what the content says, whatever the name; the name where it says nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        start = b""  # the reader says what is wrong
    # The length of a header in JSON; torch writes archives and, before, pickles.
    is_torch = start.startswith((b"PK", b"\x80"))
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not is_torch)


def _read_torch(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"weights {path} must be an existing file; check the path or train them first")
    try:
        # Of what is no tensor the arguments of a script are the most frequent, and harmless.
        with torch.serialization.safe_globals([Namespace]), path.open("rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # Of a dozen kinds, whatever damaged bytes make of pickle's instructions.
        raise CheckpointError(
            f"weights {path} are damaged or hold more than tensors; save a state dict as safetensors"
        ) from error
    return loaded if isinstance(loaded, Mapping) else {}
