"""One writer for a run folder: a lock that says who has it, and that no crash leaves behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sidestep.errors import OutputError, RunLockedError

try:
    import fcntl
except ImportError:  # Windows, where a run folder is not locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the one writer of an existing run folder.

    The operating system holds the lock and lets go of it when the process ends, however it ends. Where the
    file system knows no locks, there is none.

    Raises:
        RunLockedError: when another process, or another run in this one, writes into the folder.
        OutputError: when the folder cannot be written into.
    """
    file = _acquire(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            # Before the lock goes: whoever waits for this file finds that it is not the folder's any more.
            (folder / LOCK).unlink()
        file.close()


def _acquire(folder: Path) -> BinaryIO:
    while True:
        try:
            file = open(folder / LOCK, "a+b")  # noqa: SIM115  # closed where the lock ends
        except OSError as error:
            raise OutputError(
                f"run folder {folder} must be one that can be written into, and it is not "
                f"({error.strerror or error}); choose another with --out"
            ) from error
        try:
            _lock(file, folder)
        except BaseException:
            file.close()
            raise
        if _is_in_place(file, folder):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    return file


def _lock(file: BinaryIO, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        who = file.read(200).decode(errors="replace") or "another process"
        raise RunLockedError(
            f"run folder {folder} must have one writer, and {who} writes into it; wait for its end, or "
            "choose another folder with --out"
        ) from error
    except OSError:
        return


def _is_in_place(file: BinaryIO, folder: Path) -> bool:
    """Return whether a locked file is still the folder's: its last owner has removed it at the end."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False
