"""What stands in front of all routes: the token, and headers that every response has."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Whoever asks whether a server lives, or opens its page, needs no token.
_OPEN = ("/", "/v2/health/live", "/v2/health/ready")
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Guard:
    """Refuses requests without the token.

    Args:
        app: that is behind it.
        token: that clients must have; None lets everybody in.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_SAFE]
            await send(message)

        if self.token is None or scope["path"] in _OPEN or _knows(Headers(scope=scope), self.token):
            await self.app(scope, receive, send_safely)
            return
        refusal = JSONResponse(
            {"error": "a bearer token is needed, as --token-file of the server says"},
            status_code=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send_safely)


def _knows(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), token.encode())
