"""What a machine leaves to the next one: the work of a program in a few files of limited size."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from sidestep.files import write_file
from sidestep.results.run_result import REPORT
from sidestep.runs.image_tables import IMAGES
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.loop import BEST, LAST

MIB = 2**20
# Of one file, and of all.
PIECE, MOST = 15 * MIB, 60 * MIB
# Of every file in an archive.
_OVERHEAD = 1024
_SMALL = MIB // 2
_PIECES = "state.tar."


def pack(work: Path, state: Path) -> list[Path]:
    """Write the files of `work` into pieces in `state`, and return what had no room.

    First comes what is small, then the checkpoints from which runs go on, then the weights of finished runs,
    which keep the network alone, without the optimiser; last what was best of those that go on.

    Args:
        work: folder of the program.
        state: folder for the pieces; older ones are replaced.
    """
    for folder in (path.parent for path in work.rglob(LAST)):
        _lighten(folder)
    left: list[Path] = []
    room = MOST
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in _in_order(path for path in work.rglob("*") if path.is_file()):
            # Trainings go on meanwhile, and their unfinished files come and go.
            with suppress(FileNotFoundError):
                size = path.stat().st_size + 2 * _OVERHEAD
                if size > room:
                    left.append(path)
                    continue
                tar.add(path, arcname=str(path.relative_to(work)))
                room -= size
    _write(archive.getbuffer(), state)
    return left


def _write(whole: memoryview, state: Path) -> None:
    """Write the pieces of an archive, and put them into the place of older ones when all are there."""
    state.mkdir(parents=True, exist_ok=True)
    new = [state / f"new.{number}" for number in range(-(-len(whole) // PIECE))]
    for number, path in enumerate(new):
        write_file(path, bytes(whole[number * PIECE : (number + 1) * PIECE]), what="state")
    for old in state.glob(f"{_PIECES}*"):
        old.unlink()
    for number, path in enumerate(new):
        path.replace(state / f"{_PIECES}{number}")


def unpack(state: Path, work: Path) -> None:
    """Put the files of the pieces in `state` into `work`, if there are any."""
    pieces = sorted(state.glob(f"{_PIECES}*"), key=lambda path: int(path.suffix[1:]))
    if pieces:
        with tarfile.open(fileobj=BytesIO(b"".join(path.read_bytes() for path in pieces))) as tar:
            tar.extractall(work, filter="data")


def _in_order(paths: Iterable[Path]) -> list[Path]:
    def key(path: Path) -> tuple[int, str]:
        if not path.exists():
            return 3, str(path)
        if path.suffix != ".safetensors" and path.stat().st_size <= _SMALL:
            return 0, str(path)
        if (path.parent / REPORT).is_file():
            return 2, str(path)
        return (1 if path.name == LAST else 3), str(path)

    return sorted(paths, key=key)


def _lighten(folder: Path) -> None:
    """Keep the best network alone of a finished run; the last is the same where nothing was held out.

    What was said of its images takes as much room as half a network, and `sidestep report` makes it anew.
    """
    if not (folder / REPORT).is_file():
        return
    checkpoint = load_checkpoint(folder / BEST)
    tensors = {key: value for key, value in checkpoint.tensors.items() if key.startswith("model.")}
    save_checkpoint(folder / BEST, Checkpoint(tensors=tensors, values=checkpoint.values))
    (folder / LAST).unlink()
    (folder / IMAGES).unlink(missing_ok=True)
