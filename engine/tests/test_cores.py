"""Threads that wait for work wake beside the one that calls them, never on its core."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import plans
import pytest
from sidestep_engine import Engine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
IMAGE = np.zeros((1, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """Return the cores that this thread may use, and gives them back to it."""
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def an_engine() -> tuple[Engine, int]:
    before = threads()
    engine = Engine(plans.routed_resnet(1, (16,), seed=2), precision="float32", num_threads=2)
    # The last one: a sanitizer starts a thread of its own before the first.
    return engine, max(threads() - before)


def call_from(engine: Engine, core: int) -> None:
    os.sched_setaffinity(0, {core})
    engine(IMAGE)


def soon(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_a_sleeping_thread_leaves_out_its_callers_core(cores: list[int]) -> None:
    engine, worker = an_engine()
    for core in (cores[0], cores[1], cores[0]):
        call_from(engine, core)
        others = set(cores) - {core}
        assert soon(lambda others=others: os.sched_getaffinity(worker) == others)


def test_a_thread_that_is_called_while_it_sleeps_wakes_elsewhere(cores: list[int]) -> None:
    engine, worker = an_engine()
    call_from(engine, cores[0])
    assert soon(lambda: os.sched_getaffinity(worker) == set(cores) - {cores[0]})
    call_from(engine, cores[1])
    with open(f"/proc/self/task/{worker}/stat") as stat:
        assert int(stat.read().rpartition(")")[2].split()[36]) != cores[1]


def test_cores_that_a_user_gives_a_thread_stay(cores: list[int]) -> None:
    engine, worker = an_engine()
    call_from(engine, cores[0])
    assert soon(lambda: os.sched_getaffinity(worker) == set(cores) - {cores[0]})
    os.sched_setaffinity(worker, {cores[0]})
    for _ in range(3):
        call_from(engine, cores[0])
        time.sleep(0.02)
        assert os.sched_getaffinity(worker) == {cores[0]}


def test_one_core_is_enough(cores: list[int]) -> None:
    os.sched_setaffinity(0, cores[:1])
    engine, worker = an_engine()
    call_from(engine, cores[0])
    assert engine(IMAGE).logits.shape == (1, 10) and os.sched_getaffinity(worker) == set(cores[:1])
