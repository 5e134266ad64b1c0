"""Call an engine 100,000 times, and load one 1,000 times, and say how much the process has grown.

    python engine/scripts/leak.py

Needs the engine, installed, and its tests' plans; ends with 1 when the process grew by more than 1 MiB.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
from sidestep_engine import Engine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import byte_plans
import plans

CALLS, LOADS, ALLOWED = 100_000, 1_000, 2**20


def resident() -> int:
    """Return the bytes that the process has in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(what: str, times: int, call: object) -> int:
    """Return how much `times` calls have added, after a tenth as many that warm up."""
    for number in range(times // 10):
        call(number)  # type: ignore[operator]
    before = resident()
    for number in range(times):
        call(number)  # type: ignore[operator]
    added = resident() - before
    print(f"{what}: {times:,} times, {added / 1024:+,.0f} KiB on {before / 2**20:,.0f} MiB")
    return added


def main() -> int:
    plan = plans.routed_resnet(2, (16,))
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    sizes = (1, 2, 3, 8, 0)
    added = 0
    for precision in ("float32", "bfloat16"):
        engine = Engine(plan, precision=precision, num_threads=2)
        added += grown(f"calls, {precision}", CALLS, lambda n, e=engine: e(images[: sizes[n % len(sizes)]]))
        del engine
    engine = Engine(byte_plans.routed_resnet(2, (16,)), num_threads=2)
    added += grown("calls, bytes", CALLS, lambda n: engine(images[: sizes[n % len(sizes)]]))
    added += grown("loads", LOADS, lambda n: Engine(plan, num_threads=2)(images[:1]))
    return int(added > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
