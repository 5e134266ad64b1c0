"""Commands that serve networks over HTTP: serve, explore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sidestep.cli.groups import Trained
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
    with _serving():
        from sidestep.serve.server import serve as serve_models
        from sidestep.serve.settings import ServeSettings

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


def explore(
    models: list[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    images: int = 500,
    precision: Literal["auto", "float32", "bfloat16"] = "float32",
    trained: Trained,
) -> None:
    """Serve the page of a report on which images are tried with any budget.

    Args:
        models: run folders, packages and plans; NAME=PATH gives one another name.
        host: address to listen at.
        port: to listen at; 0 takes a free one.
        images: most images of the test split that can be looked at.
        precision: of the engine; others than float32 may let images leave elsewhere than the report says.
        trained: which weights of runs, on which data; a plan shows images where data are named.
    """
    with _serving():
        from sidestep.serve.explore import PATIENT_MS
        from sidestep.serve.explore import explore as explore_models
        from sidestep.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        deadline_ms=PATIENT_MS,
        precision=precision,
        checkpoint=trained.checkpoint,
    )
    explore_models(models, settings, images=images, source=trained.source)


@contextmanager
def _serving() -> Iterator[None]:
    """Say in a sentence that the server's packages are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ServeError(
            f"the server needs the package {error.name}, which is not installed; "
            "`pip install 'sidestep[serve]'` adds it"
        ) from error
