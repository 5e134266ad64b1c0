"""The application: routes of the Open Inference Protocol, metrics, and a page to drop an image on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from sidestep.serve.admission import Admission, has_come
from sidestep.serve.body import GONE, disconnected, read_body
from sidestep.serve.describe import INFER, REFUSALS, metadata, page, server_metadata
from sidestep.serve.guard import Guard
from sidestep.serve.lateness import Lateness
from sidestep.serve.protocol import InferRequest, halves, outputs_of, read_request, summary
from sidestep.serve.queueing import Answer, Job
from sidestep.serve.refusal import RefusedError
from sidestep.serve.scheduler import Scheduler, new_job
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import ServeSettings
from sidestep.serve.telemetry import CONTENT_TYPE, Meters, Telemetry
from sidestep.serve.tensor_images import is_quick
from sidestep.serve.tensors import written

# Bodies, and JSON, of fewer bytes are read and decoded where they come, without a thread.
_SMALL = 16384
_HEADER_LENGTH = "Inference-Header-Content-Length"
_log = logging.getLogger(__name__)


class _Endpoint:
    """A served model with its scheduler."""

    def __init__(self, model: ServedModel, settings: ServeSettings, meters: Meters) -> None:
        self.model = model
        self.telemetry = Telemetry(meters, model.name)
        self.scheduler = Scheduler(
            model.runners,
            model.ladder,
            self.telemetry,
            deadline=1e-3 * settings.deadline_ms,
            queue=settings.queue,
        )
        # As few as there are threads: what they decode, the engine waits for and shares the cores with.
        self._decoders = ThreadPoolExecutor(model.runners[0].num_threads, f"sidestep-{model.name}")

    async def apart(self, is_quick: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, in a thread where it may take long."""
        if is_quick:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def stop(self) -> None:
        """Answer what has been accepted, and end all threads."""
        await self.scheduler.stop()
        self._decoders.shutdown()


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
    endpoints = {model.name: _Endpoint(model, settings, meters) for model in models}

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

    schedulers = {name: endpoint.scheduler for name, endpoint in endpoints.items()}
    app.add_middleware(Admission, schedulers=schedulers, lateness=lateness)
    app.add_middleware(Guard, token=token)  # the one that is added last is asked first
    _add_descriptions(app, endpoints, meters)
    _add_front(app, page(models, needs_token=token is not None) if front is None else front)
    _add_inference(app, endpoints, settings, lateness)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Let every error be a JSON object with a sentence."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return JSONResponse({"error": f"{error}"}, status_code=error.status, headers=error.headers)

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


def _find(endpoints: dict[str, _Endpoint], name: str, version: str | None = None) -> _Endpoint:
    if name not in endpoints:
        raise RefusedError(404, f"model {name!r} must be one of {', '.join(endpoints)}")
    if version not in (None, "1"):
        raise RefusedError(404, f"version of model {name!r} must be 1, got {version!r}")
    return endpoints[name]


def _add_descriptions(app: FastAPI, endpoints: dict[str, _Endpoint], meters: Meters) -> None:
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


def _add_inference(
    app: FastAPI, endpoints: dict[str, _Endpoint], settings: ServeSettings, lateness: Lateness
) -> None:
    """Add the route that answers."""

    @app.post("/v2/models/{name}/infer", tags=["models"], openapi_extra=INFER, responses=REFUSALS)
    @app.post(
        "/v2/models/{name}/versions/{version}/infer", tags=["models"], openapi_extra=INFER, responses=REFUSALS
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Answer images."""
        endpoint = _find(endpoints, name, version)
        code = 500
        try:
            body, arrived = await read_body(
                request, most=settings.max_body_bytes, seconds=settings.client_seconds, lateness=lateness
            )
            response = await _infer(request, endpoint, body, arrived, lateness.seconds)
            code = response.status_code
            return response
        except RefusedError as refusal:
            code = refusal.status
            raise
        finally:
            endpoint.telemetry.replied(code)


async def _infer(request: Request, endpoint: _Endpoint, body: bytes, arrived: float, late: float) -> Response:
    """Return the answer to a body that arrived at a time, by an event loop that is late for some seconds."""
    scheduler, model, apart = endpoint.scheduler, endpoint.model, endpoint.apart
    text, rest = halves(body, request.headers.get(_HEADER_LENGTH))
    asked = await apart(len(text) <= _SMALL, read_request, text, rest)
    count, wishes = model.pictures.count(asked.tensor), asked.wishes
    if count > scheduler.most_waiting:
        raise RefusedError(413, f"a request must have at most {scheduler.most_waiting} images, got {count}")
    bounds = model.ladder.bounds(wishes.budget, wishes.budget_ms, wishes.min_accuracy)
    # An answer waits for the event loop, as its request did.
    deadline = min(scheduler.deadline, wishes.timeout or scheduler.deadline) - late
    # Before anything is decoded: whoever is refused shall cost little.
    has_come(request.scope, scheduler)
    scheduler.admit(count, bounds[0], deadline - (time.monotonic() - arrived))
    try:
        images = await apart(
            len(body) <= _SMALL or is_quick(asked.tensor), model.pictures.images, asked.tensor
        )
        jobs = [
            new_job(
                image,
                bounds,
                arrived=arrived,
                deadline=deadline,
                timeout=wishes.timeout,
                priority=wishes.priority,
            )
            for image in images
        ]
    except BaseException:
        scheduler.forget(count)
        raise
    scheduler.submit(jobs)
    answers = await _answers(request, endpoint, jobs)
    return _response(model, asked, answers)


async def _answers(request: Request, endpoint: _Endpoint, jobs: Sequence[Job]) -> list[Answer]:
    """Return the answers of a request, unless its client goes first.

    Raises:
        RefusedError: where it has, or an image was not answered in time.
    """
    answers = asyncio.gather(*(job.answer for job in jobs))
    gone = asyncio.ensure_future(disconnected(request))
    either: set[asyncio.Future[Any]] = {answers, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return answers.result()
        endpoint.telemetry.cancelled()
        raise RefusedError(GONE, "the client has gone")
    finally:
        gone.cancel()
        answers.cancel()
        for job in jobs:
            job.answer.cancel()


def _response(model: ServedModel, asked: InferRequest, answers: Sequence[Answer]) -> Response:
    budgets = [model.ladder.rungs[answer.rung].budget for answer in answers]
    outputs = outputs_of(answers, budgets, asked.outputs, model.class_names)
    header: dict[str, Any] = {"model_name": model.name, "model_version": "1"}
    if asked.id is not None:
        header["id"] = asked.id
    header["parameters"] = summary(answers, budgets)
    content, length = written(header, outputs)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={_HEADER_LENGTH: str(length)})
