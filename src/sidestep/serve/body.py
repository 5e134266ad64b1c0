"""The bodies of requests: bounded in bytes and in time, and clients that go away while they wait."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request

from sidestep.serve.lateness import Lateness
from sidestep.serve.refusal import RefusedError, wrong

# What a proxy of Nginx calls a request whose client has gone; nobody reads it.
GONE = 499
# When the first byte of a request was read, in seconds of the monotonic clock; a key of its scope.
BEGUN = "sidestep.begun"
_CLOSE = {"Connection": "close"}


async def read_body(
    request: Request, *, most: int, seconds: float, lateness: Lateness
) -> tuple[bytes, float]:
    """Return the body of a request, and when it came in seconds of the monotonic clock.

    A client's own time is not the server's. What the event loop is behind is, for every piece of the body: it
    counts as having come so much earlier than it was read.

    Args:
        request: whose body nobody has read.
        most: bytes.
        seconds: in which it must have come.
        lateness: of the event loop.

    Raises:
        RefusedError: for one that is larger, slower, compressed, or broken off.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedError(415, f"bodies must not be compressed, got Content-Encoding {encoding!r}")
    said = request.headers.get("content-length", "0")
    if not (said.isascii() and said.isdigit()):
        raise wrong("Content-Length must be a number")
    chunks, size, waited = [], 0, lateness.seconds
    last = request.scope.get(BEGUN, time.monotonic())
    try:
        if int(said[:18]) > most:
            raise _too_large(most)
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
                chunks.append(chunk)
                now = time.monotonic()
                waited += min(now - last, lateness.seconds)
                last = now
    except TimeoutError:
        raise RefusedError(408, f"a request must have come within {seconds:g} s; try again", _CLOSE) from None
    except ClientDisconnect:
        raise RefusedError(GONE, "the client has gone") from None
    return b"".join(chunks), last - waited


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"a body must have at most {most} bytes; send fewer images at once", _CLOSE)


async def disconnected(request: Request) -> None:
    """Return when the client of a request has gone, whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
