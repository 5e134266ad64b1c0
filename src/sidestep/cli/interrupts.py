"""Interrupts of the command line, heard from its first moment on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

# Seconds until an interrupt that an import has swallowed is raised once more.
_PATIENCE = 0.1
_IMPORTS = "<frozen importlib._bootstrap>"


@contextmanager
def heard_interrupts() -> Iterator[list[int]]:
    """Yield a list that gets the number of every interrupt, which is raised as a KeyboardInterrupt as usual.

    SIGTERM counts as one, so that schedulers' ends are orderly too. Whoever ignores interrupts, such as a
    shell's job in the background, goes on ignoring them. Modules that are being imported may swallow an
    interrupt, for they try what is installed: it is raised again until it arrives.
    """
    ears = _Ears()
    if threading.current_thread() is not threading.main_thread():
        yield ears.heard
        return
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {
        number: signal.signal(number, ears.hear)
        for number, default in defaults.items()
        if signal.getsignal(number) is default
    }
    try:
        yield ears.heard
    finally:
        ears.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class _Ears:
    """What hears signals.

    Attributes:
        heard: number of every signal.
        repeated: whether the next signal is not the user's but a repetition.
        closed: set when nothing is repeated any more.
        repeater: thread that repeats a signal.
    """

    heard: list[int] = field(default_factory=list)
    repeated: bool = False
    closed: threading.Event = field(default_factory=threading.Event)
    repeater: threading.Thread | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raise a KeyboardInterrupt, unless a repeated one is on its way already."""
        if self.repeated:
            self.repeated = False
            if self.closed.is_set() or _is_on_its_way():
                return
        self.heard.append(number)
        if self.repeater is None and _is_importing(frame):
            self.repeater = threading.Thread(target=self._repeat, args=(number,), daemon=True)
            self.repeater.start()
        raise KeyboardInterrupt

    def close(self) -> None:
        """End repeating."""
        self.closed.set()
        if self.repeater is not None:
            self.repeater.join()

    def _repeat(self, number: int) -> None:
        while not self.closed.wait(_PATIENCE):
            if signal.getsignal(number) != self.hear:
                # Whoever has begun to listen instead is told once, as by the user.
                _signal_main_thread(number)
                return
            self.repeated = True
            _signal_main_thread(number)


def _signal_main_thread(number: int) -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        # Ends what it waits for, too.
        signal.pthread_kill(main, number)
    else:  # Windows
        signal.raise_signal(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


def _is_on_its_way() -> bool:
    """Return whether a KeyboardInterrupt, or what a library has made of it, is being handled."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
