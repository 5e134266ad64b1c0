"""What a request is refused with."""

from __future__ import annotations

from sidestep.errors import SidestepError


class RefusedError(SidestepError):
    """A request that is not answered.

    Args:
        status: HTTP status.
        sentence: what the client is told.
        headers: of the response, beside those that every response has.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


def wrong(sentence: str) -> RefusedError:
    """Return the refusal of a request that nobody could answer."""
    return RefusedError(400, sentence)
