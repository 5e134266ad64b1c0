"""The one writer of files, and the one reader of safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.errors import CheckpointError, OutputError, SidestepError


def write_file(
    path: Path,
    content: bytes | str,
    *,
    what: str = "file",
    way_out: str = "choose another place, or free some space",
    error: type[SidestepError] = OutputError,
) -> None:
    """Write a file so that at every moment the old one or the new one is there, whole.

    Args:
        path: of the file, in an existing folder.
        content: all of it; text is written as UTF-8.
        what: what errors call it.
        way_out: what errors advise.
        error: what is raised where it cannot be written.

    Raises:
        SidestepError: of the kind `error`, for a full disk for example; the old file is untouched then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as caught:
        partial.unlink(missing_ok=True)
        raise error(
            f"{what} {path} could not be written ({caught.strerror or caught}); {way_out}"
        ) from caught


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and the plain texts in its header.

    Raises:
        CheckpointError: when the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path} must be an existing file; check the path or train them first")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"weights {path} are damaged or not safetensors ({error}); restore or train them again"
        ) from error
