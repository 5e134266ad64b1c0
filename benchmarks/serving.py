"""The server under load: requests at random, at 0.5, 1, 2 and 4 times what it answers at its full budget.

For a run with budgets (`sidestep curve RUN`), once with a budget that follows the load and once with the
full one alone; requests do not wait for each other. The unit is the highest rate at which such requests are
answered in time by the full budget, on the same machine to the same client. Beside them plain FastAPI around
the static network in ONNX Runtime: time to the first answer, and answers a second to 32 clients.

The load comes from this process, which shares the machine's cores with the server; both shares are in the
table. Requests are bytes that are ready before the load begins, in connections that stay open.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import options, publish, table
from serving_load import (
    NOT_SENT,
    Reply,
    Request,
    Shares,
    closed_loop,
    first_answer,
    poisson,
    requests_of,
    started,
    watched,
)

from sidestep.runs.run_folder import open_run

FACTORS = (0.5, 1, 2, 4)
# Budget follows the load, or stays what it is.
SERVERS = {"budget follows load": [], "full budget": ["--budget", "1", "--min-budget", "1"]}
_NUM_IMAGES = 2000
# Rates that are tried as the capacity, as multiples of the answers a second to 32 clients that wait.
_TRIED = (1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Of requests, the share that is answered in time at the capacity.
_IN_TIME = 0.99
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What became of a server's requests.

    Attributes:
        server: its name.
        factor: load in multiples of the capacity.
        replies: to all requests.
        shares: of the processor that client and server had.
    """

    server: str
    factor: float
    replies: Sequence[Reply]
    shares: Shares

    def cells(self, deadline_ms: float, smallest: float) -> list[str]:
        """Return a row: what was asked, what became of it, and how long it took."""
        replies = self.replies
        answered = [reply for reply in replies if reply.status == 200]
        refused = sum(reply.status == 429 for reply in replies)
        ms = np.array([1e3 * reply.seconds for reply in answered] or [float("nan")])
        budgets = np.array([reply.budget for reply in answered] or [np.nan])
        p50, p99 = (float(value) for value in np.percentile(ms, [50, 99]))
        return [
            self.server,
            f"{self.factor:g} x",
            f"{len(replies):,}",
            f"{len(answered):,}",
            f"{refused:,}",
            f"{sum(reply.status == NOT_SENT for reply in replies):,}",
            f"{sum(reply.status not in (200, 429, NOT_SENT) for reply in replies):,}",
            f"{p50:.1f}",
            f"{p99:.1f}",
            f"{np.mean(ms <= deadline_ms):.1%}",
            f"{np.mean([float(reply.right) for reply in answered] or [np.nan]):.2%}",
            f"{np.mean(budgets):.3f}",
            f"{np.mean(budgets <= smallest + _CLOSE):.0%}",
            f"{self.shares.client:.2f}",
            f"{self.shares.server:.2f}",
            "yes" if p99 <= deadline_ms else "no",
        ]


def capacity_of(
    port: int, requests: Sequence[Request], guess: float, deadline: float, seconds: float
) -> float:
    """Return the highest rate that was tried and at which requests at random are answered in time.

    Args:
        port: of the server.
        requests: in turn.
        guess: requests a second that it may be.
        deadline: in seconds.
        seconds: of each rate.

    Raises:
        RuntimeError: where none is.
    """
    for factor in _TRIED:
        replies = asyncio.run(poisson(port, requests, factor * guess, seconds, seed=99))
        good = sum(reply.status == 200 and reply.seconds <= deadline for reply in replies)
        if good >= _IN_TIME * len(replies):
            return factor * guess
        time.sleep(1)
    raise RuntimeError(f"the server must answer {_TRIED[-1] * guess:.1f} requests a second in {deadline:g} s")


def under_load(chosen: object, requests: Sequence[Request]) -> tuple[list[Loaded], list[list[str]], float]:
    """Return what became of all loads, the rows of throughput and first answers, and the capacity."""
    run, deadline, seconds = chosen.run, chosen.deadline_ms, chosen.seconds  # type: ignore[attr-defined]
    command = ["-m", "sidestep", "serve", f"model={run}", "--port", "0", "--deadline-ms", str(deadline)]
    loaded: list[Loaded] = []
    speeds, capacity = [], 0.0
    for name, flags in reversed(SERVERS.items()):  # the full budget says what the capacity is
        began = time.monotonic()
        with started([*command, *flags]) as (process, port):
            first = asyncio.run(first_answer(port, requests[0], began, lambda: process.poll() is None))
            speed = asyncio.run(closed_loop(port, requests, min(seconds, 10.0)))
            speeds.append([f"sidestep serve, {name}", f"{first:.2f}", f"{speed:.0f}"])
            capacity = capacity or capacity_of(port, requests, speed, 1e-3 * deadline, min(seconds, 5.0))
            for number, factor in enumerate(FACTORS):
                time.sleep(1)
                with watched(process.pid) as shares:
                    load = poisson(port, requests, factor * capacity, seconds, seed=number)
                    replies = asyncio.run(load)
                loaded.append(Loaded(server=name, factor=factor, replies=replies, shares=shares))
    return loaded[::-1], speeds, capacity


def rival(run: Path, requests: Sequence[Request], seconds: float) -> list[str]:
    """Return throughput and first answer of plain FastAPI around the static network in ONNX Runtime."""
    opened = open_run(run, "best")
    images = torch.zeros(1, len(opened.recipe.data.mean), *opened.input_size)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port, path = free.getsockname()[1], Path(folder) / "static.onnx"
        free.close()
        torch.onnx.export(opened.network.static.eval(), (images,), path, dynamo=True)
        numbers = [",".join(map(str, values)) for values in (opened.recipe.data.mean, opened.recipe.data.std)]
        began, script = time.monotonic(), Path(__file__).with_name("serving_rival.py")
        with started([str(script), str(path), str(port), *numbers]) as (process, _):
            first = asyncio.run(first_answer(port, requests[0], began, lambda: process.poll() is None))
            speed = asyncio.run(closed_loop(port, requests, min(seconds, 10.0)))
    return ["FastAPI, static network in ONNX Runtime", f"{first:.2f}", f"{speed:.0f}"]


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("run", type=Path, help="run folder with a curve")
    parser.add_argument("--source", help="where the run's data lies now (as data.source)")
    parser.add_argument("--deadline-ms", type=float, default=100.0, help="of every image (default: 100)")


def main() -> None:
    chosen = options("The server under load, seconds of each", seconds=60.0, more=arguments)
    requests = requests_of(chosen.run, chosen.source, _NUM_IMAGES)
    loaded, speeds, capacity = under_load(chosen, requests)
    smallest = min(
        (reply.budget for load in loaded for reply in load.replies if reply.status == 200), default=0
    )
    speeds.append(rival(chosen.run, requests, chosen.seconds))
    heads = ["server", "load", "requests", "answered", "429", "not sent", "lost", "p50, ms", "p99, ms",
             "in time", "accuracy", "mean budget", "at the smallest budget",
             "client, cores", "server, cores", f"p99 within {chosen.deadline_ms:g} ms"]  # fmt: skip
    tables = [
        f"The capacity, 1 x, is {capacity:.0f} requests a second: the highest rate that was tried at which "
        f"the full budget answers {_IN_TIME:.0%} of requests at random within {chosen.deadline_ms:g} ms. "
        "Client and server share the cores; what each used of them is in the table.",
        table(heads, [load.cells(chosen.deadline_ms, smallest) for load in loaded]),
        table(["server", "first answer after start, s", "answers a second, 32 clients"], speeds),
    ]
    publish("The server under load, in multiples of its capacity at the full budget", tables, chosen)


if __name__ == "__main__":
    main()
