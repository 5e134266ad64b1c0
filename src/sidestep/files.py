"""The one writer of files, and the readers of JSON and safetensors, which trust nothing."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.errors import CheckpointError, OutputError, SidestepError, UnkeptWarning


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
        path: of the file; folders above it are made.
        content: all of it; text is written as UTF-8.
        what: what errors call it.
        way_out: what errors advise.
        error: what is raised where it cannot be written.

    Raises:
        SidestepError: of the kind `error`, for a full disk for example; the old file is untouched then.
    """
    partial = path.parent / f"{path.name}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as caught:
        _forget(partial)
        raise error(
            f"{what} {path} could not be written ({caught.strerror or caught}); {way_out}"
        ) from caught
    except BaseException:  # an interrupt
        _forget(partial)
        raise


@contextmanager
def kept() -> Iterator[None]:
    """Let a file that cannot be written be a warning: what belongs into it is worth more than the file."""
    try:
        yield
    except OutputError as error:
        warnings.warn(f"{error}", UnkeptWarning, stacklevel=3)


@contextmanager
def made_folder(folder: Path, *, what: str = "folder") -> Iterator[None]:
    """Make a folder and those above it, and take away what was made and is still empty after an error.

    Raises:
        OutputError: where it cannot be made, or nothing can be written into it.
    """
    made: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.is_dir():
                place.mkdir(exist_ok=True)
                made.append(place)
        check_writable(folder, what=what)
    except OSError as caught:
        _remove_empty(made)
        raise OutputError(
            f"{what} {folder} could not be made ({caught.strerror or caught}); choose another place"
        ) from caught
    except OutputError:
        _remove_empty(made)
        raise
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def check_new_folder(path: Path, *, what: str, way_out: str, error: type[SidestepError]) -> None:
    """Return if a folder is new or empty; arguments as those of `whole_folder`.

    Raises:
        SidestepError: of the kind `error`, where something stands already.
    """
    with suppress(OSError):  # what cannot be looked at cannot be made either
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise error(f"{what} {path} must be a new or empty folder, and is not; {way_out}")


@contextmanager
def whole_folder(
    path: Path,
    *,
    what: str = "folder",
    way_out: str = "choose another place, or free some space",
    error: type[SidestepError] = OutputError,
) -> Iterator[Path]:
    """Yield a folder to write into, which becomes a new or empty one when all is written, and not before.

    Args:
        path: of the folder; those above it are made.
        what: what errors call it.
        way_out: what errors advise.
        error: what is raised where it cannot be written.

    Raises:
        SidestepError: of the kind `error`; nothing is left then.
    """
    check_new_folder(path, what=what, way_out=way_out, error=error)
    place = Path(os.path.abspath(path))
    partial = place.parent / f"{place.name}.{os.getpid()}.partial"
    with made_folder(place.parent, what="folder"):
        try:
            partial.mkdir()
            yield partial
            if place.is_dir():
                # It may be somebody's working directory, which a rename would take away.
                for part in sorted(partial.iterdir()):
                    part.rename(place / part.name)
            else:
                partial.rename(place)
        except OSError as caught:
            raise error(
                f"{what} {path} could not be written ({caught.strerror or caught}); {way_out}"
            ) from caught
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_writable(folder: Path, *, what: str = "folder") -> None:
    """Return if a file can be written into a folder, before hours of work would find out.

    Raises:
        OutputError: where none can.
    """
    probe = folder / f".sidestep-{os.getpid()}"
    try:
        probe.write_bytes(b"sidestep")
    except OSError as caught:
        raise OutputError(
            f"{what} {folder} must be one that can be written into, and it is not "
            f"({caught.strerror or caught}); choose another place, or free some space"
        ) from caught
    finally:
        _forget(probe)


def are_numbers(value: Any) -> bool:
    """Return whether a value from a file is a number, nothing, or a list of such, as deep as it goes.

    >>> are_numbers([1, [2.5, None]]), are_numbers("1"), are_numbers([{}]), are_numbers(True)
    (True, False, False, False)
    """
    if isinstance(value, list):
        return all(map(are_numbers, value))
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def read_json(path: Path, *, what: str, way_out: str) -> Any:
    """Return the value in a JSON file.

    Args:
        path: of the file.
        what: what errors call it.
        way_out: what errors advise.

    Raises:
        CheckpointError: when the file is missing, cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{what} {path} must be a file, and there is none; {way_out}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} {path} is damaged ({error}); {way_out}") from error


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


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()
