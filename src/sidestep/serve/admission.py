"""What stands in front of inference: a request that nobody could answer in time is refused by its headers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sidestep.serve.lateness import Lateness
from sidestep.serve.refusal import RefusedError
from sidestep.serve.scheduler import Scheduler

# When the first byte of a request was read, in seconds of the monotonic clock; a key of its scope.
BEGUN = "sidestep.begun"
_COMING = "sidestep.coming"
_INFER = re.compile("/v2/models/([^/]+)(?:/versions/1)?/infer")


class Admission:
    """Refuses requests for inference before their bodies are read, where the queue is full.

    A body that nobody reads costs its bytes' way through the socket and no more; the connection stays open.

    Args:
        app: that is behind it.
        schedulers: of the models, by name.
        lateness: of the event loop.
    """

    def __init__(self, app: ASGIApp, schedulers: Mapping[str, Scheduler], lateness: Lateness) -> None:
        self.app, self.schedulers, self.lateness = app, schedulers, lateness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheduler = self._asked(scope)
        if scheduler is None:
            await self.app(scope, receive, send)
            return
        begun = scope.setdefault(BEGUN, time.monotonic())
        # Its bytes have waited for the event loop, and so will its answer.
        spent = time.monotonic() - begun + 2 * self.lateness.seconds
        try:
            coming = scope[_COMING] = scheduler.announce(scheduler.deadline - spent)
        except RefusedError as error:
            scheduler.telemetry.replied(error.status)
            refusal = JSONResponse({"error": f"{error}"}, status_code=error.status, headers=error.headers)
            await refusal(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            scheduler.has_come(coming)

    def _asked(self, scope: Scope) -> Scheduler | None:
        """Return the scheduler of the model that is asked to infer."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        found = _INFER.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        return None if found is None else self.schedulers.get(found[1])


def has_come(scope: Scope, scheduler: Scheduler) -> None:
    """Let a request whose body has been read be announced no more: from now on its images count."""
    if _COMING in scope:
        scheduler.has_come(scope[_COMING])
