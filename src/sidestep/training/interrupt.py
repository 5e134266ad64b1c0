"""What an interrupt does to a training: a step is finished before the loop looks at it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType


@dataclass(slots=True)
class StopFlag:
    """Whether the user has asked for the end.

    Attributes:
        raised: set by the first interrupt; a second one ends the process where it is.
    """

    raised: bool = False


_shared: StopFlag | None = None


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Yield the flag that SIGINT and SIGTERM raise.

    Python lets only the main thread handle signals. Trainings in other threads share the flag that the main
    thread waits with; without one their flag stays down.
    """
    global _shared
    if threading.current_thread() is not threading.main_thread() or _shared is not None:
        yield _shared or StopFlag()
        return
    flag = _shared = StopFlag()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.raised:
            raise KeyboardInterrupt
        flag.raised = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        _shared = None
        for number, handler in before.items():
            # None stands for a handler that Python did not set, and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started inside hear no Ctrl-C, which a terminal sends to all, until `hear`.

    A process inherits what the thread that starts it does not hear. While it imports what it needs, an
    interrupt would end in a traceback; whoever has started it knows of the interrupt and ends it in order.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # It lets the thread that starts it hear everything again, so it must be there before.
    resource_tracker.ensure_running()
    done = threading.Event()
    # Hears for this process, whose main thread still handles what is heard.
    threading.Thread(target=done.wait, name="sidestep-hears", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


def hear() -> None:
    """Let this process hear Ctrl-C, and one that came before.

    Raises:
        KeyboardInterrupt: where one has come.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
