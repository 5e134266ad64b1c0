"""Inference: a request from its headers to its answer, and what stands in front of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sidestep.serve.body import BEGUN, GONE, disconnected, read_body
from sidestep.serve.lateness import Lateness
from sidestep.serve.protocol import InferRequest, halves, outputs_of, read_request, summary
from sidestep.serve.queueing import Answer, Job
from sidestep.serve.refusal import RefusedError
from sidestep.serve.scheduler import Scheduler, new_job
from sidestep.serve.served_model import ServedModel
from sidestep.serve.settings import ServeSettings
from sidestep.serve.telemetry import Meters, Telemetry
from sidestep.serve.tensor_images import is_quick
from sidestep.serve.tensors import written

# Bodies, and JSON, of fewer bytes are read and decoded where they come, without a thread.
_SMALL = 16384
_HEADER_LENGTH = "Inference-Header-Content-Length"
_PATH = re.compile("/v2/models/([^/]+)(?:/versions/1)?/infer")


class Endpoint:
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


class Inference:
    """Answers requests for inference.

    Args:
        endpoints: that can be asked, by the names of their models.
        settings: of the server.
        lateness: of the event loop.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], settings: ServeSettings, lateness: Lateness
    ) -> None:
        self.endpoints, self.settings, self.lateness = endpoints, settings, lateness

    async def answer(self, request: Request, endpoint: Endpoint) -> Response:
        """Return the answer to a request of which only the headers have been read.

        Where the queue is full that is all that is read. A body that nobody reads costs its way through the
        socket and no more, and the connection stays open.

        Raises:
            RefusedError: where there is none.
        """
        scheduler, lateness, code = endpoint.scheduler, self.lateness, 500
        begun = request.scope.setdefault(BEGUN, time.monotonic())
        try:
            # Its bytes have waited for the event loop, and so will its answer.
            spent = time.monotonic() - begun + lateness.seconds + lateness.usual
            coming = scheduler.announce(scheduler.deadline - spent)
            try:
                body, arrived = await read_body(
                    request,
                    most=self.settings.max_body_bytes,
                    seconds=self.settings.client_seconds,
                    lateness=lateness,
                )
                response = await _infer(request, endpoint, coming, body, arrived, lateness.usual)
            finally:
                scheduler.has_come(coming)
            code = response.status_code
            return response
        except RefusedError as refusal:
            code = refusal.status
            raise
        finally:
            endpoint.telemetry.replied(code)


class ShortWay:
    """Lets requests for inference past FastAPI, which routes for as long as all the rest takes.

    Args:
        app: that answers everything else.
        inference: what answers them.
    """

    def __init__(self, app: ASGIApp, inference: Inference) -> None:
        self.app, self.inference = app, inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._asked(scope)
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        try:
            response = await self.inference.answer(Request(scope, receive, send), endpoint)
        except RefusedError as error:
            response = refusal(error)
        await response(scope, receive, send)

    def _asked(self, scope: Scope) -> Endpoint | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        found = _PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        return None if found is None else self.inference.endpoints.get(found[1])


def refusal(error: RefusedError) -> Response:
    """Return what a client is told that is not answered."""
    return JSONResponse({"error": f"{error}"}, status_code=error.status, headers=error.headers)


async def _infer(
    request: Request, endpoint: Endpoint, coming: object, body: bytes, arrived: float, late: float
) -> Response:
    """Return the answer to a body that arrived at a time, by a loop that is usually late by some seconds."""
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
    scheduler.has_come(coming)
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


async def _answers(request: Request, endpoint: Endpoint, jobs: Sequence[Job]) -> list[Answer]:
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
