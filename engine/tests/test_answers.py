"""Images that leave by thresholds of their own, and are answered when they are done."""

from __future__ import annotations

import os
import threading

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, PlanError

NOBODY, ALL = 2.0, -1.0


def images(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, size, size)).astype(np.float32)


def read_indices(descriptor: int, count: int) -> list[int]:
    found = b""
    while len(found) < 8 * count:
        found += os.read(descriptor, 8 * count - len(found))
    return np.frombuffer(found, dtype=np.int64).tolist()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_image_leaves_by_its_own_threshold(num_threads: int) -> None:
    plan, x = plans.every_kind(), images(6)
    said = {}
    for threshold in (NOBODY, ALL):
        plan.steps[-2]["exit"]["threshold"] = threshold
        said[threshold] = Engine(plan, precision="float32", num_threads=1)(x)
    mixed = [ALL, NOBODY, NOBODY, ALL, ALL, NOBODY]
    engine = Engine(plan, precision="float32", num_threads=num_threads)
    for rows in (slice(None), slice(1), slice(1, 2)):
        given = engine(x[rows], thresholds=np.array(mixed[rows])[:, None])
        assert given.exits.tolist() == [int(threshold > 0) for threshold in mixed[rows]]
        wanted = np.stack([said[threshold].logits[i] for i, threshold in enumerate(mixed)])
        np.testing.assert_allclose(given.logits, wanted[rows], atol=1e-5)  # an image alone is shared
    np.testing.assert_array_equal(given.temperatures, engine.temperatures[given.exits])


@pytest.mark.parametrize(
    "thresholds", [np.zeros((3, 1)), np.zeros((4, 2)), np.zeros(4), np.array([["a"]] * 4), np.zeros((4, 0))]
)
def test_thresholds_that_do_not_fit_are_refused(thresholds: np.ndarray) -> None:
    engine = Engine(plans.every_kind(), precision="float32", num_threads=1)
    with pytest.raises(PlanError, match="thresholds must be"):
        engine(images(4), thresholds=thresholds)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("count", [1, 40])
def test_an_image_is_said_to_be_done_when_its_row_is_there(count: int, num_threads: int) -> None:
    engine = Engine(plans.every_kind(), precision="float32", num_threads=num_threads)
    x = images(count)
    thresholds = np.where(np.arange(count) % 3 == 0, ALL, NOBODY)[:, None]
    wanted = engine(x, thresholds=thresholds)
    out = engine.room_for(count, 8, 8)
    out.exits[:] = -7
    reading, writing = os.pipe()
    seen: dict[int, tuple[int, np.ndarray]] = {}

    def read() -> None:
        for _ in range(count):
            (index,) = read_indices(reading, 1)
            seen[index] = int(out.exits[index]), out.logits[index].copy()

    reader = threading.Thread(target=read)
    reader.start()
    assert engine(x, thresholds=thresholds, out=out, done=writing) is out
    reader.join()
    os.close(reading)
    # Nobody reads any more, and the next call ends all the same.
    np.testing.assert_array_equal(engine(x, thresholds=thresholds, done=writing).logits, wanted.logits)
    os.close(writing)
    assert sorted(seen) == list(range(count))
    for index, (left, logits) in seen.items():
        assert left == wanted.exits[index]
        np.testing.assert_array_equal(logits, wanted.logits[index])


def test_threads_wait_where_nobody_reads() -> None:
    engine = Engine(plans.every_kind(), precision="float32", num_threads=2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, bytes(65536))  # as much as a pipe holds
    call = threading.Thread(target=lambda: engine(images(8), done=writing))
    call.start()
    call.join(0.05)
    assert call.is_alive()
    read_indices(reading, 65536 // 8)
    assert sorted(read_indices(reading, 8)) == list(range(8))
    call.join()
    os.close(reading), os.close(writing)


def test_an_output_of_another_batch_is_refused() -> None:
    engine = Engine(plans.every_kind(), precision="float32", num_threads=1)
    with pytest.raises(PlanError, match="outputs do not fit the batch"):
        engine(images(4), out=engine.room_for(5, 8, 8))
