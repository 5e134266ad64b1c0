"""Names of runs that lie elsewhere: `hf-hub:org/name[@revision]` and `local-dir:path`, as timm has them."""

from __future__ import annotations

from pathlib import Path

from sidestep.errors import CheckpointError
from sidestep.hub.remote import HUB, download, named
from sidestep.hub.unpacked import unpack

LOCAL = "local-dir:"


def is_place(text: object) -> bool:
    """Return whether a text names a package, on the hub or in a folder."""
    return str(text).startswith((HUB, LOCAL))


def run_folder_of(run: Path | str) -> Path:
    """Return the run folder that a user's name stands for.

    A package is unpacked into a run folder in the cache. Any other name is that of a run folder already.

    Args:
        run: a run folder, `hf-hub:org/name`, `hf-hub:org/name@revision`, or `local-dir:path`, the folder of a
            package.

    Raises:
        CheckpointError: when there is no such package, or it is damaged.
    """
    text = str(run)
    if text.startswith(LOCAL):
        folder = local_folder(text)
        if not folder.is_dir():
            raise CheckpointError(
                f"package {text} must be a folder, and there is none; `sidestep push RUN {text}` makes it"
            )
        return unpack(folder, folder.resolve().name or "package")
    if text.startswith(HUB):
        return unpack(download(text), named(text)[0].partition("/")[2])
    return Path(run)


def local_folder(text: str) -> Path:
    """Return the folder behind `local-dir:`.

    Raises:
        CheckpointError: when nothing is behind it.
    """
    path = text.removeprefix(LOCAL)
    if not path:
        raise CheckpointError(
            f"{LOCAL} must be followed by a folder, got nothing; for example {LOCAL}package"
        )
    return Path(path).expanduser()
