"""The application: routes of the Open Inference Protocol, metrics, and a page to drop an image on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from sidestep.serve.describe import INFER, REFUSALS, metadata, page, server_metadata
from sidestep.serve.guard import Guard
from sidestep.serve.inference import Endpoint, Inference, ShortWay, refusal
from sidestep.serve.lateness import Lateness
from sidestep.serve.refusal import RefusedError
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import ServeSettings
from sidestep.serve.telemetry import CONTENT_TYPE, Meters


def create_app(
    models: Sequence[ServedModel], settings: ServeSettings, front: tuple[str, str] | None = None
) -> FastAPI:
    """Return the application that serves models.

    Args:
        models: that can be asked.
        settings: of the server.
        front: its first page with the content security policy; None is a page to drop an image on.

    Raises:
        ServeError: when the token cannot be read.
    """
    meters, token, lateness = Meters(), settings.token(), Lateness()
    endpoints = {model.name: Endpoint(model, settings, meters) for model in models}

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        lateness.start()
        for endpoint in endpoints.values():
            endpoint.scheduler.start()
        yield
        lateness.stop()
        for endpoint in endpoints.values():
            await endpoint.stop()

    app = FastAPI(title="sidestep", lifespan=running, docs_url=None, redoc_url=None)
    _answer_errors(app)

    inference = Inference(endpoints, settings, lateness)
    app.add_middleware(ShortWay, inference=inference)
    app.add_middleware(Guard, token=token)  # the one that is added last is asked first
    _add_descriptions(app, endpoints, meters)
    _add_front(app, page(models, needs_token=token is not None) if front is None else front)
    _add_inference(app, inference)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Let every error be a JSON object with a sentence."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            {"error": f"{error.detail}"}, status_code=error.status_code, headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": "the request does not fit the API; see /openapi.json"}, status_code=400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server has failed; its log says why"}, status_code=500)


def _find(endpoints: Mapping[str, Endpoint], name: str, version: str | None = None) -> Endpoint:
    if name not in endpoints:
        raise RefusedError(404, f"model {name!r} must be one of {', '.join(endpoints)}")
    if version not in (None, "1"):
        raise RefusedError(404, f"version of model {name!r} must be 1, got {version!r}")
    return endpoints[name]


def _add_descriptions(app: FastAPI, endpoints: Mapping[str, Endpoint], meters: Meters) -> None:
    """Add the routes that only tell."""

    @app.get("/v2", tags=["server"])
    async def server() -> dict[str, Any]:
        """Return what the server is."""
        return server_metadata()

    @app.get("/v2/health/live", tags=["server"])
    async def live() -> dict[str, bool]:
        """Return that the server lives."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["server"])
    async def ready() -> dict[str, bool]:
        """Return that all models are ready."""
        return {"ready": True}

    @app.get("/v2/models/{name}", tags=["models"], responses=REFUSALS)
    @app.get("/v2/models/{name}/versions/{version}", tags=["models"], responses=REFUSALS)
    async def model(name: str, version: str | None = None) -> dict[str, Any]:
        """Return what a model takes, what it says, and its budgets."""
        return metadata(_find(endpoints, name, version).model)

    @app.get("/v2/models/{name}/ready", tags=["models"], responses=REFUSALS)
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["models"], responses=REFUSALS)
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Return that a model is ready."""
        return {"name": _find(endpoints, name, version).model.name, "ready": True}

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Return what Prometheus reads."""
        return Response(await asyncio.to_thread(meters.page), media_type=CONTENT_TYPE)


def _add_front(app: FastAPI, front: tuple[str, str]) -> None:
    text, policy = front

    @app.get("/", tags=["server"], response_class=HTMLResponse)
    async def index() -> Response:
        """Return a page to drop images on."""
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def _add_inference(app: FastAPI, inference: Inference) -> None:
    """Add the route that answers, for the description of the API and for what is asked in vain."""

    @app.post("/v2/models/{name}/infer", tags=["models"], openapi_extra=INFER, responses=REFUSALS)
    @app.post(
        "/v2/models/{name}/versions/{version}/infer", tags=["models"], openapi_extra=INFER, responses=REFUSALS
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Answer images."""
        return await inference.answer(request, _find(inference.endpoints, name, version))
