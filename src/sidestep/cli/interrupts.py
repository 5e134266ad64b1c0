"""Interrupts of the command line, heard from its first moment on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heard_interrupts() -> Iterator[list[int]]:
    """Yield a list that gets the number of every interrupt, which is raised as a KeyboardInterrupt as usual.

    SIGTERM counts as one, so that schedulers' ends are orderly too. Whoever ignores interrupts, such as a
    shell's job in the background, goes on ignoring them.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {
        number: signal.signal(number, on_signal)
        for number, default in defaults.items()
        if signal.getsignal(number) is default
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
