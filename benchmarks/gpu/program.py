"""The papers at full size where there is a GPU for some minutes: what is open, in order; later calls go on.

    python benchmarks/gpu/program.py --minutes 11 --state state --out results

One call runs the tests that need a GPU, times training and inference, and trains the next rows of
`rows.yaml`, several at a time. What it leaves in --state are at most four files of 15 MiB, with which a call
on any machine goes on; results are small files in --out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rows import SECONDS_TO_STOP, Row, read_rows, train_rows
from state import pack, unpack

from sidestep.evaluation.environment import commit, hardware, in_words, versions
from sidestep.results.run_result import REPORT
from sidestep.training.devices import Devices

HERE = Path(__file__).resolve().parent
PARTS = ("tests", "training", "inference", "rows")
# Left for the end of trainings, and for packing what was done.
_SECONDS_TO_END = SECONDS_TO_STOP + 15.0
_DONE = "done.json"


def commands(chosen: Namespace) -> dict[str, tuple[list[str], float]]:
    """Return the command of every part that is one, with the seconds that it may take at most."""
    python, sizes = sys.executable, [str(size) for size in chosen.batch_sizes]
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:benchmark",
        "-n",
        str(chosen.workers),
        "tests/gpu",
    ]
    training = [python, str(HERE.parent / "training_speed.py"), "--batch-sizes", *sizes]
    inference = [python, str(HERE.parent / "inference_on_gpu.py")]
    seconds = ["--seconds", str(chosen.seconds)]
    return {
        "tests": (tests, 180.0),
        "training": ([*training, *seconds], 240.0),
        "inference": ([*inference, *seconds], 150.0),
    }


def run_part(name: str, command: Sequence[str], seconds: float, out: Path) -> bool:
    """Run a part with a time limit, keep what it prints, and return whether it came to its end."""
    end = time.monotonic() + seconds
    with (out / f"{name}.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=HERE.parents[1],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    say(f"{name}: exit code {process.returncode}")
    return process.returncode >= 0


def table_of(rows: Sequence[Row], runs: Path) -> list[dict[str, Any]]:
    """Return what every row has come to: figures of the test split where it is finished."""
    lines = []
    for row in rows:
        report, metrics = runs / row.name / REPORT, runs / row.name / "metrics.jsonl"
        epochs = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        wanted = sum(phase.epochs for phase in row.recipe.training.phases)
        line: dict[str, Any] = {"row": row.name, "epochs": f"{epochs} of {wanted}"}
        if (runs / f"{row.name}.failed").is_file():
            line["failed"] = True
        if report.is_file():
            last = json.loads(report.read_text())["last"]
            line |= {name: last[name] for name in ("accuracy", "fraction_of_full", "num_paths")}
        lines.append(line)
    return lines


def say(sentence: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {sentence}", flush=True)


def call(chosen: Namespace) -> None:
    """Do what is open for some minutes."""
    begun = time.monotonic()
    end = begun + 60 * chosen.minutes - _SECONDS_TO_END
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        unpack(chosen.state, work)
        before = work / _DONE
        done = json.loads(before.read_text()) if before.is_file() else {"parts": [], "calls": []}
        this: dict[str, Any] = {}
        done["calls"].append(this)

        def keep() -> list[Path]:
            # Whoever ends this program before its time loses a minute.
            this.update(circumstances(begun))
            for path in (before, chosen.out / _DONE):
                path.write_text(json.dumps(done, indent=1))
            return pack(work, chosen.state)

        for name, (command, most) in commands(chosen).items():
            left = end - time.monotonic()
            if name in chosen.parts and name not in done["parts"] and left > 1:
                if run_part(name, command, min(most, left), chosen.out):
                    done["parts"].append(name)
                keep()
        if "rows" in chosen.parts:
            train_open(chosen, work / "runs", end - time.monotonic(), keep)
        for path in keep():
            say(f"no room for {path.relative_to(work)}")


def train_open(chosen: Namespace, runs: Path, seconds: float, keep: Callable[[], object]) -> None:
    """Train the next rows, and write the table of all."""
    rows = read_rows(chosen.rows, dict(entry.split("=", 1) for entry in chosen.data), chosen.settings)
    runs.mkdir(parents=True, exist_ok=True)
    devices = Devices(accelerator=chosen.accelerator, logger="none", compile=False)
    if seconds > 1:
        train_rows(
            rows,
            runs,
            workers=chosen.workers,
            replicas=chosen.replicas,
            seconds=seconds,
            devices=devices,
            keep=keep,
        )
    lines = table_of(rows, runs)
    (chosen.out / "rows.json").write_text(json.dumps(lines, indent=1) + "\n")
    for line in lines:
        say(", ".join(f"{name} {value}" for name, value in line.items()))


def circumstances(begun: float) -> dict[str, Any]:
    """Return what this call ran on, and for how long."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else None
    return {
        "hardware": in_words(hardware(device)),
        "versions": versions(),
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "minutes": round((time.monotonic() - begun) / 60, 2),
    }


def main() -> None:
    parser = ArgumentParser(description="Do what wants a GPU, for some minutes, and go on in the next call.")
    parser.add_argument("--minutes", type=float, default=11.0, help="of this call (default: %(default)g)")
    parser.add_argument("--state", type=Path, default=Path("gpu_state"), help="folder for the next call")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the program")
    parser.add_argument("--rows", type=Path, default=HERE / "rows.yaml", help="what is trained, in order")
    parser.add_argument("--workers", type=int, default=4, help="processes (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=3, help="rows that each trains at a time")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every group of timings")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 512], help="of training's timing")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["cifar10=hfds/uoft-cs/cifar10", "cifar100=hfds/uoft-cs/cifar100"],
        help="sources of the sets; rows of a set that is not named wait",
    )
    parser.add_argument("--settings", nargs="+", default=[], help="key=value for every row")
    call(parser.parse_args())


if __name__ == "__main__":
    main()
