"""What the benchmark scripts share: their options, the circumstances of a run, and the table."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

from sidestep.data.histogram import color_histogram
from sidestep.evaluation.bench import interleave, turn
from sidestep.evaluation.environment import commit, hardware, in_words, versions
from sidestep.types import Batch

__all__ = [
    "Ratio",
    "difference",
    "in_processes",
    "interleave",
    "options",
    "publish",
    "random_batch",
    "report",
    "table",
]


def random_batch(size: int, device: torch.device | str = "cpu") -> Batch:
    """Return random images of 32x32 with labels and RDI-Net's statistics, (size, 192)."""
    pixels = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (size,), device=device)
    images = (pixels / 127.5 - 1).to(memory_format=torch.channels_last)
    return Batch(images=images, labels=labels, statistics=color_histogram(pixels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One line of the table: a median beside the median that it is measured against.

    Attributes:
        what: what was timed.
        median_ms: its median.
        against: what it is compared with.
        against_ms: the median of that.
        aim: largest ratio that is good enough, or None for a line that informs.
    """

    what: str
    median_ms: float
    against: str
    against_ms: float
    aim: float | None

    def cells(self) -> list[str]:
        """Return the cells of the line."""
        ratio = self.median_ms / self.against_ms
        digits = 3 if self.aim is not None and self.aim < 0.1 else 2
        return [
            self.what,
            f"{self.median_ms:.2f}",
            f"{self.against}: {self.against_ms:.2f}",
            f"{ratio:.{digits}f}",
            "" if self.aim is None else f"{self.aim:.{digits}f}",
            "" if self.aim is None else "yes" if ratio <= self.aim else "no",
        ]


def difference(one: Callable[[], object], other: Callable[[], object], *, seconds: float) -> float:
    """Return how many milliseconds longer a call of `one` takes than one of `other`.

    For differences smaller than what two medians drift apart within a run: turns of 20 ms follow each
    other in pairs, in an order that changes, and the median of the pairs' differences counts.

    Args:
        one: a call, about as long as `other`.
        other: what it is compared with.
        seconds: time limit.
    """
    pairs: list[float] = []
    end = time.monotonic() + seconds
    while len(pairs) < 4 or time.monotonic() < end:
        first, second = (one, other) if len(pairs) % 2 else (other, one)
        gap = median(turn(first)) - median(turn(second))
        pairs.append(gap if first is one else -gap)
    return 1e3 * median(pairs)


@contextmanager
def in_processes(
    makers: Mapping[str, Callable[[], Callable[[], object]]],
) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield one call per maker, which runs what the maker returns in a process of its own and waits for it.

    For what takes turns for seconds, changes its process or fills its memory: in one process the heap of all
    would be everybody's, and nobody's as it is alone.

    Args:
        makers: by name; functions of modules, which the processes can import.
    """
    context = get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in makers.items():
            pipes[name], end = context.Pipe()
            processes.append(context.Process(target=_serve, args=(make, end), daemon=True))
            processes[-1].start()
            end.close()
        yield {name: partial(_ask, pipe) for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def _ask(pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()


def _serve(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    call = make()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        call()
        pipe.send(None)


def options(
    description: str,
    *,
    seconds: float | None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """Return the command line's `out` and `seconds`, with a default for the latter, and what `more` adds.

    A script that times nothing has None for it.
    """
    parser = argparse.ArgumentParser(description=description)
    if more is not None:
        more(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="file for the page, benchmarks/results/<topic>/<date>.md; printed in any case",
    )
    if seconds is not None:
        parser.add_argument(
            "--seconds",
            type=float,
            default=seconds,
            help="time limit of every group of timings that take turns (default: %(default)s)",
        )
    parsed = parser.parse_args()
    # Before anything is timed: afterwards the load is the script's own.
    parsed.load = os.getloadavg()[0]
    return parsed


def report(title: str, lines: Sequence[Ratio], chosen: argparse.Namespace) -> None:
    """Print the table of ratios with everything that is needed to read it, and write it to --out."""
    names = ["what", "median, ms", "against, ms", "ratio", "aim", "met"]
    publish(title, [table(names, [line.cells() for line in lines])], chosen)


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])


def publish(title: str, parts: Sequence[str], chosen: argparse.Namespace) -> None:
    """Print a page that begins with the circumstances of the run, and write it to --out."""
    circumstances = [
        f"- hardware: {in_words(hardware())}",
        f"- load average before the run: {chosen.load:.2f} (0 is a quiet machine)",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- commit: {commit()}",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        *([f"- limit: {chosen.seconds:g} s a group"] if "seconds" in chosen else []),
    ]
    text = "\n\n".join([f"# {title}", "\n".join(circumstances), *parts])
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n")
