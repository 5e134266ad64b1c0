"""Rows of tables that the program trains: read from YAML, and trained by workers until none is left."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from threading import Thread

import torch
import yaml

from sidestep.data.shared_images import shared_images
from sidestep.errors import InterruptedRunError
from sidestep.results.run_result import REPORT
from sidestep.runs.recipe import Recipe, load_recipe
from sidestep.runs.train import train
from sidestep.training.devices import Devices
from sidestep.training.interrupt import stop_flag

# A step, its checkpoint, and whatever is being read or reported. Who takes longer loses a minute at most.
SECONDS_TO_STOP = 15.0
_SECONDS_TO_KEEP = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A run: its folder's name, and what is trained."""

    name: str
    recipe: Recipe


def read_rows(path: Path, data: dict[str, str], overrides: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a YAML file in order, every one checked; those whose data is not here are left out.

    Args:
        path: list of mappings with name, recipe, and if wanted seeds, settings ("key=value") and data.
        data: name of a set -> source that has it.
        overrides: of all rows.
    """
    rows = []
    for entry in yaml.safe_load(path.read_text()):
        source = data.get(entry.get("data", "cifar10"))
        if source is None:
            continue
        for seed in entry.get("seeds", [0]):
            settings = [*entry.get("settings", []), f"data.source={source}", f"training.seed={seed}"]
            recipe = load_recipe(entry["recipe"], [f"--{text}" for text in (*settings, *overrides)])
            rows.append(Row(f"{entry['name']}_seed{seed}", recipe))
    return rows


def train_rows(
    rows: Sequence[Row],
    out: Path,
    *,
    workers: int,
    replicas: int,
    seconds: float,
    devices: Devices,
    keep: Callable[[], object],
) -> None:
    """Train rows in order, so many at a time, for a while; what is not finished goes on in the next call.

    It returns at most `SECONDS_TO_STOP` later than asked.

    Args:
        rows: to be trained.
        out: folder of their run folders.
        workers: processes.
        replicas: rows that each of them trains at a time, on a GPU on streams of their own.
        seconds: after which they are stopped; each saves the step that it is at.
        devices: where a row is trained.
        keep: called every minute.
    """
    context = multiprocessing.get_context("spawn")
    waiting = [row for row in rows if not (out / row.name / REPORT).is_file()]
    # How many rows were taken. A queue would have to hold all rows before a worker runs that takes one, and
    # its pipe has no room for them.
    taken: Synchronized[int] = context.Value("i", 0)
    end = time.monotonic() + seconds
    arguments = (waiting, taken, out, devices, replicas, max(1, torch.get_num_threads() // workers), end)
    processes = [context.Process(target=_work, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    kept = time.monotonic()
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        time.sleep(0.2)
        if time.monotonic() - kept > _SECONDS_TO_KEEP:
            keep()
            kept = time.monotonic()
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(max(0.0, end + SECONDS_TO_STOP - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(
    rows: Sequence[Row],
    taken: Synchronized[int],
    out: Path,
    devices: Devices,
    replicas: int,
    threads: int,
    end: float,
) -> None:
    torch.set_num_threads(threads)
    multiprocessing.set_start_method(None, force=True)
    # The main thread alone hears that it is to stop, and waits where it can.
    with stop_flag(), shared_images():
        takers = [Thread(target=_take, args=(rows, taken, out, devices, end)) for _ in range(replicas)]
        for taker in takers:
            taker.start()
        for taker in takers:
            while taker.is_alive():
                taker.join(0.2)


def _take(rows: Sequence[Row], taken: Synchronized[int], out: Path, devices: Devices, end: float) -> None:
    """Train one row after the other until the time is up or none is left."""
    while time.monotonic() < end:
        with taken.get_lock():
            index = taken.value
            taken.value += 1
        if index >= len(rows):
            return
        row = rows[index]
        folder = out / row.name
        try:
            train(row.recipe, folder, resume=folder.is_dir() and any(folder.iterdir()), devices=devices)
        except InterruptedRunError:
            return
        except Exception:
            # Of one row; the others do not have to end with it.
            logging.getLogger(__name__).exception("row %s failed", row.name)
            (out / f"{row.name}.failed").write_text("see the log\n")
