"""Load for servers: a server as a process, requests as bytes, and clients that do not wait for each other."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run

# Connections that wait for answers at the same time; beyond that a request is not sent.
MOST_CONNECTIONS = 1000
NOT_SENT = -1
_ROOM = 2**20
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STARTS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of a request.

    Attributes:
        status: of HTTP; 0 where the connection broke, -1 for a request that was not sent.
        seconds: from when it was due to its answer.
        right: whether the answer was the label.
        budget: with which it was answered.
    """

    status: int
    seconds: float
    right: bool = False
    budget: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as bytes, and the class that it should be answered with."""

    raw: bytes
    label: int


def requests_of(run: Path, source: str | None, count: int) -> list[Request]:
    """Return requests with images of a run's test split, one each, as pixels in binary."""
    opened = open_run(run, "best")
    test = data_of(opened, "test", source).test
    assert test is not None  # all sources have one
    found: list[Request] = []
    mean, std = (
        np.array(values).reshape(-1, 1, 1) for values in (opened.recipe.data.mean, opened.recipe.data.std)
    )
    for batch in test.eval_batches(batch_size=500):
        for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
            pixels = np.rint((image * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
            found.append(Request(raw=request_bytes(pixels), label=label))
            if len(found) == count:
                return found
    return found


def request_bytes(pixels: Any, *, model: str = "model") -> bytes:
    """Return a whole HTTP request for one image of (H, W, C) uint8 pixels."""
    content = np.ascontiguousarray(pixels).tobytes()
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, *pixels.shape],
        "parameters": {"binary_data_size": len(content)},
    }
    header = json.dumps({"inputs": [tensor], "outputs": [{"name": "class"}, {"name": "budget"}]}).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: bench\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + len(content)}\r\n\r\n"
    )
    return head.encode() + header + content


@contextmanager
def started(
    command: Sequence[str],
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a server's process and its port, once it says where it listens; it is told to stop at the end."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://\S+?:(\d+)", line):
                # What it says later must not fill the pipe.
                Thread(target=process.stderr.read, daemon=True).start()
                yield process, int(found[1])
                break
            print(line, end="", file=sys.stderr)
        else:
            raise RuntimeError(f"{' '.join(command)} did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


class Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[tuple[int, bytes]] | None = None
        self.open = True
        self.got = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # The kernel takes a request as a whole; it is not copied piece by piece when there is room again.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)

    def data_received(self, data: bytes) -> None:
        self.got += data
        end = self.got.find(b"\r\n\r\n") + 4
        if end < 4 or self.reply is None or self.reply.done():
            return
        found = _LENGTH.search(self.got, 0, end)
        if len(self.got) == end + (int(found[1]) if found else 0):
            self.reply.set_result((int(self.got[9:12]), bytes(self.got[end:])))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(ConnectionError())

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request."""
        self.reply = asyncio.get_running_loop().create_future()
        if not self.open:
            raise ConnectionError
        self.got.clear()
        self.transport.write(raw)
        return await self.reply


class Clients:
    """Connections to a server, each with one request at a time.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Connection] = []
        self.count = 0

    async def ask(self, request: Request, due: float) -> Reply:
        """Return what becomes of a request that was due at a time of the monotonic clock."""
        if not self.idle and self.count >= MOST_CONNECTIONS:
            return Reply(status=NOT_SENT, seconds=time.monotonic() - due)
        self.count += not self.idle
        connection = self.idle.pop() if self.idle else None
        # A server may close an idle connection just when it is used again; every client tries another then.
        for is_last in (connection is None, True):
            try:
                if connection is None:
                    connection = await self._connect()
                status, body = await connection.ask(request.raw)
                break
            except OSError:
                connection = None
                if is_last:
                    self.count -= 1
                    return Reply(status=0, seconds=time.monotonic() - due)
        assert connection is not None  # the loop ends with one, or returns
        self.idle.append(connection)
        seconds = time.monotonic() - due
        if status != 200:
            return Reply(status=status, seconds=seconds)
        said = {each["name"]: each["data"][0] for each in json.loads(body)["outputs"]}
        return Reply(
            status=status,
            seconds=seconds,
            right=said["class"] == request.label,
            budget=said.get("budget", 1.0),
        )

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, "127.0.0.1", self.port))[1]

    def close(self) -> None:
        """Close all connections."""
        for connection in self.idle:
            connection.transport.close()


async def poisson(
    port: int, requests: Sequence[Request], rate: float, seconds: float, *, seed: int
) -> list[Reply]:
    """Return what becomes of requests that come at random, whether or not others are answered.

    Args:
        port: of the server.
        requests: in turn.
        rate: requests a second.
        seconds: in which they come.
        seed: of their times.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 10)
    times = np.cumsum(gaps)
    clients, tasks, began = Clients(port), [], time.monotonic()
    for number, offset in enumerate(times[times < seconds].tolist()):
        wait = began + offset - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        else:
            await asyncio.sleep(0)  # behind time: requests are sent and answers read all the same
        request = requests[number % len(requests)]
        tasks.append(asyncio.create_task(clients.ask(request, began + offset)))
    replies = await asyncio.gather(*tasks)
    clients.close()
    return replies


@dataclass(slots=True)
class Shares:
    """Cores that client and server use, in processor seconds a second."""

    client: float = 0.0
    server: float = 0.0


@contextmanager
def watched(server: int) -> Iterator[Shares]:
    """Yield what is, at the end, the share of the processor that this process and a server had.

    No garbage is collected here meanwhile: looking through all that a script has imported takes a tenth of a
    second, in which nobody would read answers.

    Args:
        server: its process.
    """
    found = Shares()
    gc.collect()
    gc.disable()
    began = time.monotonic(), time.process_time(), processor_seconds(server)
    try:
        yield found
    finally:
        gc.enable()
        seconds = time.monotonic() - began[0]
        found.client = (time.process_time() - began[1]) / seconds
        found.server = (processor_seconds(server) - began[2]) / seconds


def processor_seconds(process: int) -> float:
    """Return the processor time of a process that runs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def closed_loop(port: int, requests: Sequence[Request], seconds: float, *, clients: int = 32) -> float:
    """Return answers a second to clients that each wait for an answer before they ask again."""
    pool, answered, end = Clients(port), 0, time.monotonic() + seconds

    async def one(first: int) -> None:
        nonlocal answered
        number = first
        while time.monotonic() < end:
            reply = await pool.ask(requests[number % len(requests)], time.monotonic())
            answered += reply.status == 200
            number += clients

    began = time.monotonic()
    await asyncio.gather(*(one(first) for first in range(clients)))
    pool.close()
    return answered / (time.monotonic() - began)


async def first_answer(port: int, request: Request, began: float, running: Callable[[], bool]) -> float:
    """Return the seconds from a server's start to its first answer."""
    while running() and time.monotonic() - began < _STARTS:
        clients = Clients(port)
        reply = await clients.ask(request, began)
        clients.close()
        if reply.status == 200:
            return reply.seconds
        await asyncio.sleep(0.05)
    raise RuntimeError("the server did not answer")
