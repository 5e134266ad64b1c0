"""Where long work is: told to whoever watches it, such as the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")

_MINUTE, _HOUR = 60, 3600


class Shown(Protocol):
    """A part of the work that somebody watches."""

    def advance(self, amount: float) -> None:
        """Hear that so much more of it is done."""
        ...

    def end(self) -> None:
        """Hear that it has come to its end, or was given up."""
        ...


# Is told what a part of the work is and how much there is of it; parts may have parts.
Watcher = Callable[[str, float], Shown]
# Of this thread and task: what others do beside it is not this one's to show.
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Let a watcher be told where the work inside is, or nobody."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def under_way(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Yield what is called with how much more of a part of the work is done.

    Args:
        what: is done, as a user reads it.
        total: amount of it, in any unit.
    """
    watcher = _watcher.get()
    if watcher is None or total <= 0:
        yield _nobody
        return
    shown = watcher(what, total)
    try:
        yield shown.advance
    finally:
        shown.end()


def through(
    items: Iterable[Item], what: str, total: float, size: Callable[[Item], float] | None = None
) -> Iterator[Item]:
    """Yield items; one is done when the next is asked for.

    Args:
        items: what the work goes through.
        what: is done, as a user reads it.
        total: size of all items.
        size: of an item; by default every item is 1.
    """
    with under_way(what, total) as advance:
        for item in items:
            yield item
            advance(1.0 if size is None else size(item))


class Pace:
    """How long the rest takes of work in equal parts, from how long those behind took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return how long the work has been under way."""
        return time.monotonic() - self._began

    def seconds_left(self, done: float, total: float) -> float | None:
        """Return how long the rest takes, or None where nothing is done yet."""
        return self.seconds * (total - done) / done if done > 0 else None

    def clause(self, done: float, total: float) -> str:
        """Return `, about 3 min left`, or nothing where nobody can say yet."""
        left = self.seconds_left(done, total)
        return "" if left is None else f", {time_left(left)}"


def time_left(seconds: float) -> str:
    """Return how much time is left in as few digits as an estimate has."""
    if seconds < _MINUTE:
        return f"about {max(1, round(seconds))} s left"
    if seconds < _HOUR:
        return f"about {round(seconds / _MINUTE)} min left"
    hours, minutes = divmod(round(seconds / _MINUTE), 60)
    return f"about {hours} h {minutes} min left"


def _nobody(amount: float) -> None:
    """Hear of what nobody watches."""
