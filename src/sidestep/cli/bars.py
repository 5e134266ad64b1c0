"""Where a long command is, on standard error: bars on a terminal, and at most one line per part elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from sidestep.progress import Pace, Shown, time_left, watched

# What is over sooner needs no bar, nor a line.
_BAR_AFTER, _LINE_AFTER, _LINE_LEFT = 0.5, 10.0, 20.0
_log = logging.getLogger(__name__)


@contextmanager
def bars_on_stderr(is_first: Callable[[], bool]) -> Iterator[None]:
    """Show on standard error how far the work inside is, and how long it still takes.

    Args:
        is_first: whether this process speaks for all.
    """
    bars = Bars(is_first)
    try:
        with watched(bars):
            yield
    finally:
        bars.close()


class Bars:
    """Shows the parts of the work of this process.

    Args:
        is_first: whether this process speaks for all.
    """

    def __init__(self, is_first: Callable[[], bool]) -> None:
        self._is_first = is_first
        self._console = Console(stderr=True)
        self._progress: Progress | None = None

    def __call__(self, what: str, total: float) -> Shown:
        """Return what shows a part of the work."""
        if self._console.is_interactive and self._is_first():
            return _Bar(self, what, total)
        return _Line(what, total)

    def add(self, what: str, total: float) -> tuple[Progress, TaskID]:
        """Show a further bar below those that there are."""
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                console=self._console,
                # What was done is said by lines; a bar that is full says nothing.
                transient=True,
                # Results belong on standard output, wherever that is.
                redirect_stdout=False,
                # A thread that draws would take its time from what is timed under a bar.
                auto_refresh=False,
            )
            self._progress.start()
        return self._progress, self._progress.add_task(what, total=total, left="")

    def remove(self, bar: TaskID) -> None:
        """Take a bar away, and with the last one the display."""
        if self._progress is None:
            return  # an error has ended the command before this part
        self._progress.remove_task(bar)
        if not self._progress.tasks:
            self.close()

    def close(self) -> None:
        """Take all bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Bar:
    """A bar that appears once its part has taken half a second."""

    def __init__(self, bars: Bars, what: str, total: float) -> None:
        self._bars, self._what, self._total = bars, what, total
        self._pace, self._done = Pace(), 0.0
        self._shown: tuple[Progress, TaskID] | None = None

    def advance(self, amount: float) -> None:
        self._done += amount
        if self._shown is None:
            if self._pace.seconds < _BAR_AFTER:
                return
            self._shown = self._bars.add(self._what, self._total)
        progress, bar = self._shown
        left = self._pace.seconds_left(self._done, self._total) or 0.0
        progress.update(bar, completed=self._done, left=time_left(left), refresh=True)

    def end(self) -> None:
        if self._shown is not None:
            self._bars.remove(self._shown[1])


class _Line:
    """One line, where a part turns out to take long."""

    def __init__(self, what: str, total: float) -> None:
        self._what, self._total = what, total
        self._pace, self._done, self._said = Pace(), 0.0, False

    def advance(self, amount: float) -> None:
        self._done += amount
        left = self._pace.seconds_left(self._done, self._total) or 0.0
        if not self._said and self._pace.seconds >= _LINE_AFTER and left >= _LINE_LEFT:
            self._said = True
            _log.info("%s: %.0f %%, %s", self._what, 100 * self._done / self._total, time_left(left))

    def end(self) -> None:
        pass
