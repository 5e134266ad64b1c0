"""The server under load: requests at random, at 0.5, 1, 2 and 4 times what it answers at its full budget.

For a run with budgets (`sidestep curve RUN`), once with a budget that follows the load and once with the full
one alone; requests do not wait for each other. Beside them plain FastAPI around the static network in ONNX
Runtime: time to the first answer, and answers a second to 32 clients. The load comes from this process, which
shares the machine.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import options, publish, table
from serving_load import NOT_SENT, Reply, Request, closed_loop, first_answer, poisson, requests_of, started

from sidestep.runs.run_folder import open_run

FACTORS = (0.5, 1, 2, 4)
# Budget follows the load, or stays what it is.
SERVERS = {"budget follows load": [], "full budget": ["--budget", "1", "--min-budget", "1"]}
_NUM_IMAGES = 2000


def row_of(name: str, factor: float, replies: Sequence[Reply], deadline_ms: float) -> list[str]:
    """Return a row: what was asked, what became of it, and how long it took."""
    answered = [reply for reply in replies if reply.status == 200]
    refused = sum(reply.status == 429 for reply in replies)
    ms = np.array([1e3 * reply.seconds for reply in answered] or [np.nan])
    p50, p99 = (float(value) for value in np.percentile(ms, [50, 99]))
    return [
        name,
        f"{factor:g} x",
        f"{len(replies):,}",
        f"{len(answered):,}",
        f"{refused:,}",
        f"{sum(reply.status == NOT_SENT for reply in replies):,}",
        f"{sum(reply.status not in (200, 429, NOT_SENT) for reply in replies):,}",
        f"{p50:.1f}",
        f"{p99:.1f}",
        f"{np.mean(ms <= deadline_ms):.1%}",
        f"{np.mean([reply.right for reply in answered] or [np.nan]):.2%}",
        f"{np.mean([reply.budget for reply in answered] or [np.nan]):.3f}",
        "yes" if p99 <= deadline_ms else "no",
    ]


def under_load(chosen: object, requests: Sequence[Request]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows under load, and those of throughput and first answers."""
    run, deadline, seconds = chosen.run, chosen.deadline_ms, chosen.seconds  # type: ignore[attr-defined]
    command = ["-m", "sidestep", "serve", f"model={run}", "--port", "0", "--deadline-ms", str(deadline)]
    rows, speeds, capacity = [], [], 0.0
    for name, flags in reversed(SERVERS.items()):  # the full budget says what the capacity is
        began = time.monotonic()
        with started([*command, *flags]) as (process, port):
            first = asyncio.run(first_answer(port, requests[0], began, lambda: process.poll() is None))
            speed = asyncio.run(closed_loop(port, requests, min(seconds, 10.0)))
            capacity = capacity or speed
            speeds.append([f"sidestep serve, {name}", f"{first:.2f}", f"{speed:.0f}"])
            for number, factor in enumerate(FACTORS):
                load = poisson(port, requests, factor * capacity, seconds, seed=number)
                rows.append(row_of(name, factor, asyncio.run(load), deadline))
                time.sleep(1)
    return rows[::-1], speeds


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
    rows, speeds = under_load(chosen, requests)
    speeds.append(rival(chosen.run, requests, chosen.seconds))
    heads = ["server", "load", "requests", "answered", "429", "not sent", "lost", "p50, ms", "p99, ms",
             "in time", "accuracy", "mean budget", f"p99 within {chosen.deadline_ms:g} ms"]  # fmt: skip
    tables = [
        table(heads, rows),
        table(["server", "first answer after start, s", "answers a second, 32 clients"], speeds),
    ]
    publish("The server under load, in multiples of its capacity at the full budget", tables, chosen)


if __name__ == "__main__":
    main()
