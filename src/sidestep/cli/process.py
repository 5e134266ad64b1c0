"""What the command line does to its own process. Functions of the library leave their caller's as it is."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from sidestep.errors import UnkeptWarning

# How often a waiting thread looks for its next piece of work before it sleeps.
_LOOKS = 10_000


def share_cores() -> None:
    """Let waiting threads of PyTorch sleep soon, where nobody has said how they wait.

    GNU's OpenMP lets them look for work for milliseconds. Beside another process that is busy, threads that
    work then wait for the core of threads that look, and a training of small maps takes a hundred times as
    long. On idle cores the count here takes no more time. It is read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_LOOKS))


def set_up_process(command: str) -> None:
    """Prepare a process that runs one command and ends: figures need no screen, Optuna shows errors alone.

    Memory and garbage collection stay as they are: benchmarks/results/fused_passes found nothing in changing
    them. The other processes of one training run the same command line, and come here too.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    if command == "sweep":
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def progress_on_stderr(is_first: Callable[[], bool]) -> Iterator[None]:
    """Show on standard error what the library logs: where a long command is.

    Args:
        is_first: whether this process speaks for all.
    """
    logger, handler = logging.getLogger("sidestep"), _Lines(is_first)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Libraries that are imported on the way (NNCF) give the root logger a handler, which would say all again.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def unkept_on_stderr() -> Iterator[list[str]]:
    """Yield a list of what could not be kept, each said in a sentence on standard error when it happens."""
    unkept: list[str] = []
    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, UnkeptWarning):
                show_others(message, category, filename, lineno, file, line)
                return
            unkept.append(str(message))
            print(f"sidestep: {message}", file=sys.stderr)

        warnings.simplefilter("always", UnkeptWarning)
        warnings.showwarning = show
        yield unkept


class _Lines(logging.Handler):
    """Writes every record as a line to what standard error is at that time."""

    def __init__(self, is_first: Callable[[], bool]) -> None:
        super().__init__()
        self.is_first = is_first

    def emit(self, record: logging.LogRecord) -> None:
        if self.is_first():
            try:
                print(record.getMessage(), file=sys.stderr, flush=True)
            except BrokenPipeError:
                raise
            except OSError:
                pass  # a full disk: what cannot be told is done all the same
