"""How far the event loop is behind: what waits in front of it no queue can see."""

from __future__ import annotations

import asyncio
import time

_EVERY = 0.02
# Of what is usual, the share that the newest round has.
_NEWEST = 0.2


class Lateness:
    """Notes how late the event loop calls what it was to call at a time.

    Requests that have come and are not read yet wait for so long about, and so do answers that are not told
    yet; where HTTP itself is what costs, that is most of their wait.

    Attributes:
        seconds: how late it was just now.
        usual: how late it is on average, for what is still to come: a stall that is over keeps nobody.
    """

    def __init__(self) -> None:
        self.seconds = self.usual = self._last = 0.0

    def start(self) -> None:
        """Begin, in the event loop that is meant."""
        self._loop = asyncio.get_running_loop()
        self._later()

    def stop(self) -> None:
        """Note nothing more."""
        self._handle.cancel()

    def _later(self) -> None:
        # Not by the loop's own clock, which stands still in a turn of uvloop.
        self._due = time.monotonic() + _EVERY
        self._handle = self._loop.call_later(_EVERY, self._note)

    def _note(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        # What is read in this turn has waited for this one or for the one before.
        self.seconds = max(late, self._last)
        self._last = late
        self.usual += _NEWEST * (late - self.usual)
        self._later()
