"""The server for a long time among clients that break off, send nonsense, and go: what is lost, and memory.

Requests come at random at a mean rate. At the same time clients close their connections in the middle, and
send random bytes, torn requests and wrong JSON; where schemathesis is installed, it reads `/openapi.json` and
tries what that allows and forbids. The server's log is a full disk. After half of the time it is told to stop
while requests are on their way, which all must be answered, and it starts again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from measure import options, publish, table
from serving_load import NOT_SENT, Clients, Request, first_answer, poisson, requests_of

_RATE, _ABUSE = 50.0, 20.0
# What becomes of a request just before the stop: a connection that the server has not read from is closed.
_ENDS = {200: "answered", 429: "429", 0: "not accepted"}
# By which memory may grow between the first quarter of a half and its end.
AIM = 1.1


@contextmanager
def server(run: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Yield a server whose log goes to a full disk, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sidestep", "serve", f"model={run}", "--port", str(port)]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen([*command, "--client-seconds", "2"], stderr=full, stdout=full)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1000


async def abuse(port: int, requests: Sequence[Request], end: float, seen: Counter[str]) -> None:
    """Let clients break off and send nonsense, and count what servers say to that."""
    draw = random.Random(0)
    while time.monotonic() < end:
        await asyncio.sleep(draw.expovariate(_ABUSE))
        raw = draw.choice(requests).raw
        head, _, body = raw.partition(b"\r\n\r\n")
        nonsense = bytes(draw.randrange(256) for _ in range(len(body)))
        kind, content = draw.choice(
            [
                ("closed", raw[: draw.randrange(1, len(raw))]),
                ("closed", raw),
                ("killed", raw[: draw.randrange(1, len(raw))]),
                ("killed", raw),
                ("random body", head + b"\r\n\r\n" + nonsense),
                ("random bytes", nonsense + b"\r\n\r\n"),
                ("wrong JSON", head + b"\r\n\r\n" + body.replace(b"image", b"imago", 1)),
            ]
        )
        seen[await one_abuse(port, content, kind)] += 1


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes
) -> tuple[int, bytes]:
    """Return status and body of the answer to a request."""
    writer.write(raw)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    found = re.search(rb"content-length: (\d+)", head)
    body = await reader.readexactly(int(found[1]) if found else 0)
    return int(head.split(b" ", 2)[1]), body


async def one_abuse(port: int, content: bytes, kind: str) -> str:
    """Return what a server says to some bytes, or that the client did not wait for it."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "no connection"
    try:
        if kind in ("closed", "killed"):
            writer.write(content)
            await writer.drain()
            if kind == "killed":  # the connection is reset, as the kernel does for a process that is gone
                abrupt = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abrupt)
            return f"{kind} clients"
        async with asyncio.timeout(20):
            status, _ = await exchange(reader, writer, content)
        return f"status {status // 100}xx"
    except (OSError, asyncio.IncompleteReadError, ValueError):
        return "closed by the server"
    except TimeoutError:
        return "no answer"
    finally:
        writer.close()


def fuzzer(port: int, seconds: float, out: Path) -> subprocess.Popen[bytes] | None:
    """Return schemathesis at work on the description of the API, or None where it is not installed."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = shutil.which("schemathesis", path=places)
    if command is None:
        return None
    place = f"http://127.0.0.1:{port}/openapi.json"
    flags = ["--checks", "not_a_server_error", "--max-time", str(max(1, int(seconds))), "--no-color"]
    with out.open("wb") as told:
        # It keeps what it has found in the folder in which it works.
        return subprocess.Popen([command, "run", place, *flags], stdout=told, stderr=told, cwd=out.parent)


def verdict(code: int, told: str) -> str:
    """Return what schemathesis has found, from its exit code and what it has said."""
    count = re.search(r"(\d[\d,]*) generated", told)
    cases = f" in {count[1]} cases" if count else ""
    return f"no 5xx{cases}" if code == 0 else f"exit code {code}{cases}"


async def half(run: Path, requests: Sequence[Request], seconds: float, *, number: int) -> list[str]:
    """Return a row: what became of requests, abuse and memory, until the server was told to stop."""
    with server(run) as (process, port), tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "schemathesis.txt"
        await first_answer(port, requests[0], time.monotonic(), lambda: process.poll() is None)
        end, seen = time.monotonic() + seconds, Counter[str]()
        tried = fuzzer(port, seconds, told)
        load = asyncio.create_task(poisson(port, requests, _RATE, seconds, seed=number))
        bad = asyncio.create_task(abuse(port, requests, end, seen))
        await asyncio.sleep(seconds / 4)
        early = memory_mb(process)
        replies = await load
        await bad
        late = memory_mb(process)
        found = "not installed"
        if tried is not None:
            found = verdict(await asyncio.to_thread(tried.wait), told.read_text())
            if not found.startswith("no 5xx"):
                print(told.read_text(), file=sys.stderr)
        # The stop: requests are on their way, and are answered all the same.
        clients = Clients(port)
        last = [asyncio.create_task(clients.ask(each, time.monotonic())) for each in requests[:64]]
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stopped = await asyncio.gather(*last)
        code = await asyncio.to_thread(process.wait, 60)
    refused = sum(reply.status == 429 for reply in replies)
    lost = sum(reply.status not in (200, 429, NOT_SENT) for reply in replies)
    ends = Counter(_ENDS.get(reply.status, f"status {reply.status}") for reply in stopped)
    ended = ", ".join(f"{count} {what}" for what, count in sorted(ends.items()))
    said = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()))
    fails = "5xx" in said or found.startswith("exit code")
    # Python ends with 120 where standard error could not be written to the last.
    good = lost == 0 and late <= AIM * early and code in (0, 120) and not fails and "status" not in ended
    counts = [f"{len(replies):,}", f"{refused:,}", f"{lost:,}"]
    return [str(number), *counts, said, found, f"{early:.0f}", f"{late:.0f}",
            ended, str(code), "yes" if good else "no"]  # fmt: skip


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--source", help="where the run's data lies now (as data.source)")


def main() -> None:
    chosen = options("The server for a long time, seconds of all of it", seconds=1200.0, more=arguments)
    requests = requests_of(chosen.run, chosen.source, 500)
    rows = [asyncio.run(half(chosen.run, requests, chosen.seconds / 2, number=n)) for n in (1, 2)]
    heads = ["half", "requests", "429", "lost", "broken clients", "schemathesis",
             "memory after a quarter, MB", "at the end, MB", "64 requests around SIGTERM", "exit code",
             "met"]  # fmt: skip
    publish("The server among broken clients, its log on a full disk", [table(heads, rows)], chosen)


if __name__ == "__main__":
    main()
