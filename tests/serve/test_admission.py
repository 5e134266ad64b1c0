"""Who is let in: refused by its headers where the queue is full, and by when a request has come."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.requests import Request

from sidestep.serve import body
from sidestep.serve.app import create_app
from sidestep.serve.body import BEGUN, read_body
from sidestep.serve.lateness import Lateness
from sidestep.serve.refusal import RefusedError
from sidestep.serve.scheduler import Scheduler, stacked
from sidestep.serve.served_model import ServedModel
from sidestep.serve.server import uvicorn_options
from sidestep.serve.settings import ServeSettings
from sidestep.serve.tensor_images import Pictures
from tests.serve.test_scheduler import Slow, job, ladder, submit, until, with_scheduler

INFER = "/v2/models/slow/infer"


@contextmanager
def served(runner: Slow, **settings: Any) -> Iterator[int]:
    """Yield the port of a server in a thread, as `serve` runs it."""
    asked = ServeSettings(**settings)
    pictures = Pictures(None, size=(1, 1), channels=1, max_pixels=1e6)
    model = ServedModel(
        name="slow", runners=[runner], ladder=ladder(), pictures=pictures, class_names=(), about={}
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app([model], asked), **uvicorn_options(asked)))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield listening.getsockname()[1]
        finally:
            runner.go.set()
            server.should_exit = True
            thread.join()


def request_of(number: int) -> tuple[bytes, bytes]:
    """Return the headers and the body of a request for one image, which is a number."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 1]}
    text = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": 1}}], "outputs": [{"name": "logits"}]}
    ).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: test\r\nInference-Header-Content-Length: {len(text)}\r\n"
        f"Content-Length: {len(text) + 1}\r\n\r\n"
    )
    return head.encode(), text + bytes([number])


def answer_on(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer on a connection."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = connection.recv(65536)
        assert more, "the server has closed the connection"
        got += more
    head, _, content = got.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(content) < int(headers["content-length"]):
        content += connection.recv(65536)
    return int(status.split()[1]), headers, content


def test_a_full_queue_refuses_by_headers_and_loses_nothing_that_it_has_accepted() -> None:
    runner = Slow()
    with served(runner, queue=2, deadline_ms=60_000) as port:
        accepted = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        for number, connection in enumerate(accepted):
            connection.sendall(b"".join(request_of(number)))
            while not runner.batches:
                time.sleep(0.005)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as late:
            # The second request is counted when its headers have been read, which may be a moment later.
            for _ in range(1000):
                metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
                if 'sidestep_queue_images{model="slow"} 1.0' in metrics:
                    break
            head, content = request_of(2)
            late.sendall(head)  # and not a byte of its body
            status, headers, told = answer_on(late)
            assert status == 429 and int(headers["retry-after"]) >= 1
            assert "the server is busy: 2 images wait" in json.loads(told)["error"]
            # What comes behind is nobody's, and the connection stays.
            late.sendall(content + b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            assert answer_on(late)[0] == 200
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            assert 'sidestep_shed_images_total{model="slow"} 1.0' in metrics
            assert 'sidestep_requests_total{code="429",model="slow"} 1.0' in metrics
            # Other routes, models and methods are nobody's queue.
            for method, path, code in (("GET", INFER, 405), ("POST", "/v2/models/other/infer", 404)):
                assert httpx.request(method, f"http://127.0.0.1:{port}{path}").status_code == code
            runner.go.set()
            for number, connection in enumerate(accepted):
                status, _, told = answer_on(connection)
                assert status == 200 and json.loads(told)["outputs"][0]["data"][0] == number
                connection.close()
            late.sendall(head + content)
            assert answer_on(late)[0] == 200
    assert [number for batch in runner.batches for number, _ in batch] == [0, 1, 2]


def test_bodies_that_come_have_places_and_slow_ones_lose_them() -> None:
    runner = Slow()

    async def talk(scheduler: Scheduler) -> None:
        await submit(scheduler, job(0))
        await until(lambda: bool(runner.batches))
        first, second = scheduler.announce(0.4), scheduler.announce(0.4)
        with pytest.raises(RefusedError, match="busy: 3 images wait"):
            scheduler.announce(0.4)
        scheduler.has_come(first)
        scheduler.has_come(first)  # once and for all
        scheduler.admit(1, 0, 0.4)
        with pytest.raises(RefusedError, match="busy: 3 images wait"):
            scheduler.announce(0.4)
        scheduler.forget(1)
        third = scheduler.announce(0.4)
        await asyncio.sleep(0.25)  # more than half of the deadline
        for _ in range(2):
            scheduler.announce(0.4)
        scheduler.has_come(second)
        scheduler.has_come(third)
        with pytest.raises(RefusedError, match="busy: 3 images wait"):
            scheduler.announce(0.4)
        # Even one image of the smallest budget takes longer than what is left.
        with pytest.raises(RefusedError) as refused:
            scheduler.announce(1e-3)
        assert refused.value.status == 429

    with_scheduler(runner, talk, deadline=0.4, queue=3)


def test_nobody_is_refused_where_nobody_waits() -> None:
    async def talk(scheduler: Scheduler) -> None:
        scheduler.has_come(scheduler.announce(-1.0))
        scheduler.announce(-1.0)

    with_scheduler(Slow(), talk)


def test_a_body_came_when_its_client_had_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lateness = [100.0], Lateness()
    monkeypatch.setattr(body, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    pieces = [(0.5, b"a"), (0.01, b"b"), (2.0, b"c")]
    lateness.seconds = 0.1

    async def receive() -> dict[str, Any]:
        seconds, content = pieces.pop(0)
        now[0] += seconds
        return {"type": "http.request", "body": content, "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "headers": [], BEGUN: 100.0}
    request = Request(scope, receive)
    content, arrived = asyncio.run(read_body(request, most=10, seconds=10.0, lateness=lateness))
    # The loop was late by 0.1 s in front of the first byte, and of every piece as long as that took at most.
    assert content == b"abc" and arrived == pytest.approx(102.51 - 0.1 - (0.1 + 0.01 + 0.1))


def test_a_batch_is_its_images_wherever_their_bytes_lie() -> None:
    raw = np.arange(1 + 2 * 24, dtype=np.uint8).tobytes()
    odd = np.frombuffer(memoryview(raw)[1:], np.float32).reshape(2, 3, 2)
    turned = np.arange(12, dtype=np.float32).reshape(2, 3, 2).transpose(1, 0, 2)
    for images in (list(odd), [turned, turned[::-1]], [np.full((4, 4, 3), 7, np.uint8)]):
        np.testing.assert_array_equal(stacked(images), np.stack(images))
