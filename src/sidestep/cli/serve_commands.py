"""The command that serves networks over HTTP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sidestep.errors import ServeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server allows its clients.

    Attributes:
        queue: most images that wait.
        max_body_mb: largest body of a request, in 1e6 bytes.
        max_megapixels: largest picture, in 1e6 pixels.
        client_seconds: in which a client must have sent its request.
        drain_seconds: in which a server that is told to stop answers what it has accepted.
        token_file: file with the bearer token that clients must have (default: none).
    """

    queue: int = 1024
    max_body_mb: float = 32.0
    max_megapixels: float = 32.0
    client_seconds: float = 10.0
    drain_seconds: int = 30
    token_file: str | None = None


def serve(
    models: list[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    budget: float | None = None,
    min_budget: float | None = None,
    deadline_ms: float = 200.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    checkpoint: Literal["best", "last"] = "best",
    limits: Limits,
) -> None:
    """Answer images over HTTP (Open Inference Protocol), with budgets that follow the load.

    Args:
        models: run folders, packages, plans and folders of ONNX segments; NAME=PATH gives one another name.
        host: address to listen at.
        port: to listen at; 0 takes a free one.
        workers: processes that share the machine's threads.
        budget: largest share of the MACs (default: the largest of the network's).
        min_budget: smallest share that load may lower it to (default: the smallest of the network's).
        deadline_ms: in which an image is to be answered.
        precision: of the engine.
        checkpoint: of which epoch the weights of runs are.
        limits: of clients.
    """
    try:
        from sidestep.serve.server import serve as serve_models
        from sidestep.serve.settings import ServeSettings
    except ModuleNotFoundError as error:
        raise ServeError(
            f"the server needs the package {error.name}, which is not installed; "
            "`pip install 'sidestep[serve]'` adds it"
        ) from error

    settings = ServeSettings(
        host=host,
        port=port,
        workers=workers,
        budget=budget,
        min_budget=min_budget,
        deadline_ms=deadline_ms,
        precision=precision,
        checkpoint=checkpoint,
        **asdict(limits),
    )
    serve_models(models, settings)
