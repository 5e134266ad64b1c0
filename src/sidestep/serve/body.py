"""The bodies of requests: bounded in bytes and in time, and clients that go away while they wait."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from sidestep.serve.refusal import RefusedError, wrong

# What a proxy of Nginx calls a request whose client has gone; nobody reads it.
GONE = 499
_CLOSE = {"Connection": "close"}


async def read_body(request: Request, *, most: int, seconds: float) -> bytes:
    """Return the body of a request.

    Args:
        request: whose body nobody has read.
        most: bytes.
        seconds: in which it must have come.

    Raises:
        RefusedError: for one that is larger, slower, compressed, or broken off.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedError(415, f"bodies must not be compressed, got Content-Encoding {encoding!r}")
    said = request.headers.get("content-length", "0")
    if not (said.isascii() and said.isdigit()):
        raise wrong("Content-Length must be a number")
    chunks, size = [], 0
    try:
        if int(said[:18]) > most:
            raise _too_large(most)
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise _too_large(most)
                chunks.append(chunk)
    except TimeoutError:
        raise RefusedError(408, f"a request must have come within {seconds:g} s; try again", _CLOSE) from None
    except ClientDisconnect:
        raise RefusedError(GONE, "the client has gone") from None
    return b"".join(chunks)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"a body must have at most {most} bytes; send fewer images at once", _CLOSE)


async def disconnected(request: Request) -> None:
    """Return when the client of a request has gone, whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
