"""How a server is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sidestep.errors import ServeError
from sidestep.targets.native_engine import EnginePrecision

# With all routers asked, a little more than the static network.
MOST_BUDGET = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of a server.

    Args:
        host: address to listen at.
        port: to listen at; 0 takes a free one.
        workers: processes, which share the threads of the machine.
        budget: largest budget, as a share of the MACs; None is the network's dearest.
        min_budget: smallest budget that load may lower it to; None is the network's cheapest.
        deadline_ms: in which an image is to be answered, by lowering its budget where that is needed.
        queue: most images that wait.
        max_body_mb: largest body of a request, in 1e6 bytes.
        max_megapixels: largest picture, in 1e6 pixels.
        client_seconds: in which a client must have sent its request.
        drain_seconds: in which a server that is told to stop answers what it has accepted.
        precision: of the engine.
        checkpoint: of runs, "best" or "last".
        token_file: file with the token that clients must have; None lets everybody in.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    budget: float | None = None
    min_budget: float | None = None
    deadline_ms: float = 200.0
    queue: int = 1024
    max_body_mb: float = 32.0
    max_megapixels: float = 32.0
    client_seconds: float = 10.0
    drain_seconds: int = 30
    precision: EnginePrecision = "auto"
    checkpoint: str = "best"
    token_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("deadline_ms", "max_body_mb", "max_megapixels", "client_seconds"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ServeError(f"{name.replace('_', '-')} must be above 0 and finite, got {value}")
        for name in ("workers", "queue", "drain_seconds"):
            if (value := getattr(self, name)) < 1:
                raise ServeError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.port <= 65535:
            raise ServeError(f"port must be from 0 to 65535, got {self.port}")
        for name in ("budget", "min_budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MOST_BUDGET:
                raise ServeError(
                    f"{name.replace('_', '-')} must be a share of the MACs in (0, {MOST_BUDGET:g}], "
                    f"got {value}"
                )
        if self.budget is not None and self.min_budget is not None and self.min_budget > self.budget:
            raise ServeError(
                f"min-budget must not be above the budget, {self.budget}, got {self.min_budget}; the same "
                "for both is a budget that load does not change"
            )

    @property
    def max_body_bytes(self) -> int:
        """Return the largest body of a request."""
        return int(1e6 * self.max_body_mb)

    def token(self) -> str | None:
        """Return the token that clients must have, or None.

        Raises:
            ServeError: where the file cannot be read, or holds none.
        """
        if self.token_file is None:
            return None
        try:
            token = Path(self.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(
                f"token-file {self.token_file} must be a text that can be read ({error})"
            ) from error
        if not token or not token.isascii() or len(token.split()) != 1:
            raise ServeError(f"token-file {self.token_file} must hold one word in ASCII")
        return token
