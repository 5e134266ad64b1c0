"""The scheduler by itself: order, budgets under load, refusals, clients that go, and the end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sidestep.errors import ServeError
from sidestep.plan.levels import Level
from sidestep.serve.ladder import Ladder
from sidestep.serve.lateness import Lateness
from sidestep.serve.queueing import Answer, ImageQueue, Job
from sidestep.serve.refusal import RefusedError
from sidestep.serve.runner import Row
from sidestep.serve.scheduler import Scheduler, new_job
from sidestep.serve.telemetry import Meters, Telemetry

MS = (1.0, 4.0)  # of an image that leaves at the first exit, and at the last
LEVELS = [
    Level(macs=10, accuracy=0.8, exit_rates=[1.0, 0.0], thresholds=[-1.0]),
    Level(macs=25, accuracy=0.85, exit_rates=[0.5, 0.5], thresholds=[0.5]),
    Level(macs=40, accuracy=0.9, exit_rates=[0.0, 1.0], thresholds=[2.0]),
]


class Said(list[tuple[int, float]]):
    """Numbers and thresholds of a batch."""

    def row(self, index: int) -> Row:
        number, threshold = self[index]
        return Row(
            logits=np.array([number, 0], np.float32),
            temperature=1.0,
            path=np.array([1]),
            exit=int(threshold > 0.5),
            macs=1.0,
        )


@dataclass
class Slow:
    """A runner whose images say which number they are; it stands still until it is told to go."""

    name: str = "slow"
    precision: str = "none"
    num_threads: int = 1
    num_exits: int = 1
    never: float = 9.0
    always: float = -9.0
    go: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    batches: list[Said] = field(default_factory=list)
    error: Exception | None = None

    def room_for(self, count: int) -> Said:
        return Said()

    def run(self, images: Any, thresholds: Any, out: Said, done: int) -> None:
        out += [(int(i.flat[0]), float(t[0])) for i, t in zip(images, thresholds, strict=True)]
        self.batches.append(out)
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        for index in range(len(images)):
            time.sleep(self.seconds)
            os.write(done, index.to_bytes(8, "little"))


def ladder(**share: Any) -> Ladder:
    made = Ladder(LEVELS, full_macs=40, thresholds=[], num_exits=1, **share)
    made.exit_ms[:] = MS
    return made


def job(number: int, *, bounds: tuple[int, int] = (0, 2), deadline: float = 10.0, **more: Any) -> Job:
    options = {"arrived": time.monotonic(), "timeout": None, "priority": 2} | more
    return new_job(np.full((1, 1, 1), number, np.uint8), bounds, deadline=deadline, **options)


def with_scheduler(
    runner: Slow,
    talk: Callable[[Scheduler], Awaitable[Any]],
    *others: Slow,
    deadline: float = 10.0,
    queue: int = 1000,
    **share: Any,
) -> Any:
    async def all_of_it() -> Any:
        telemetry, runners = Telemetry(Meters(), "slow"), [runner, *others]
        scheduler = Scheduler(runners, ladder(**share), telemetry, deadline=deadline, queue=queue)
        scheduler.start()
        try:
            return await talk(scheduler)
        finally:
            for each in runners:
                each.go.set()
            await scheduler.stop()

    return asyncio.run(all_of_it())


async def submit(scheduler: Scheduler, *jobs: Job) -> None:
    scheduler.admit(len(jobs), 0, 10.0)
    scheduler.submit(jobs)
    await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


def test_the_queue_says_what_an_image_may_take() -> None:
    async def all_of_it() -> None:
        queue, now = ImageQueue(), time.monotonic()
        for number, seconds in enumerate((0.1, 0.1, 0.6)):
            queue.add(job(number, deadline=seconds, arrived=now))
        # 0.1 / 1, 0.1 / 2, 0.6 / 3
        assert queue.allowed_ms(now) == pytest.approx(50)
        queue.add(job(3, deadline=0.04, arrived=now, priority=1))
        assert queue.allowed_ms(now) == pytest.approx(1e3 * 0.1 / 3)
        assert [queue.pop().image.item() for _ in range(4)] == [3, 0, 1, 2]
        assert len(queue) == 0

    asyncio.run(all_of_it())


def test_a_long_queue_is_looked_at_here_and_there_and_at_its_end() -> None:
    async def all_of_it() -> None:
        queue, now = ImageQueue(), time.monotonic()
        for number in range(1000):
            queue.add(job(number % 200, deadline=1.0, arrived=now))
        assert queue.allowed_ms(now) == pytest.approx(1.0)

    asyncio.run(all_of_it())


def test_load_lowers_the_budget_and_its_end_raises_it() -> None:
    runner = Slow()

    async def talk(scheduler: Scheduler) -> None:
        first = [job(0, deadline=0.25)]
        await submit(scheduler, *first)
        await until(lambda: len(runner.batches) == 1)
        crowd = [job(n, deadline=0.25) for n in range(1, 51)]
        asked = [job(60, bounds=(1, 1), deadline=0.25), job(61, bounds=(2, 2), deadline=0.25)]
        await submit(scheduler, *crowd, *asked)
        runner.go.set()
        answers = await asyncio.gather(*(each.answer for each in [*first, *crowd, *asked]))
        # 70 % of 250 ms for 52 images: 3.4 ms each, which the middle one takes and the dearest does not.
        assert answers[0].rung == 2
        assert {answer.rung for answer in answers[1 : 1 + scheduler.batch]} == {1}
        assert [answer.rung for answer in answers[-2:]] == [1, 2]
        assert [round(float(answer.row.logits[0])) for answer in answers[:-2]] == list(range(51))
        late = job(7)
        await submit(scheduler, late)
        assert (await late.answer).rung == 2

    with_scheduler(runner, talk, deadline=0.25)


def test_only_the_lowest_budget_and_a_full_queue_refuse() -> None:
    runner = Slow()

    async def talk(scheduler: Scheduler) -> None:
        waiting = [job(n % 200) for n in range(60)]
        await submit(scheduler, *waiting)
        # At the lowest rung 61 images take 61 ms of the 70 that are used of 100, and 241 at the highest.
        scheduler.admit(1, 0, 0.1)
        scheduler.forget(1)
        for lowest, seconds, count in ((2, 0.1, 1), (0, 0.05, 1), (0, 10.0, 41)):
            with pytest.raises(RefusedError, match="busy") as refused:
                scheduler.admit(count, lowest, seconds)
            assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        runner.go.set()
        await asyncio.gather(*(each.answer for each in waiting))
        await asyncio.sleep(0)
        assert scheduler.pending == 0
        scheduler.admit(1, 2, 1e-9)  # nobody waits, and nobody is refused

    with_scheduler(runner, talk, queue=100)


def test_an_image_is_answered_when_it_is_done_and_not_when_its_batch_is() -> None:
    runner = Slow(seconds=0.05)
    runner.go.set()

    async def talk(scheduler: Scheduler) -> None:
        jobs = [job(n) for n in range(4)]
        await submit(scheduler, *jobs)
        await jobs[0].answer
        assert not jobs[-1].answer.done()
        answers = await asyncio.gather(*(each.answer for each in jobs))
        assert [len(batch) for batch in runner.batches] == [4]
        times = [answer.ms for answer in answers]
        assert times == sorted(times) and times[-1] - times[0] > 100

    with_scheduler(runner, talk)


def test_clients_that_go_and_timeouts_that_end_are_not_run() -> None:
    runner = Slow()

    async def talk(scheduler: Scheduler) -> None:
        first, gone, late = job(0), job(1), job(2, timeout=0.01)
        urgent = job(3, priority=1)
        await submit(scheduler, first)
        await until(lambda: bool(runner.batches))
        await submit(scheduler, gone, late, urgent)
        gone.answer.cancel()
        await asyncio.sleep(0.03)
        runner.go.set()
        await asyncio.gather(first.answer, urgent.answer)
        with pytest.raises(RefusedError, match="timeout ended") as refused:
            await late.answer
        assert refused.value.status == 504
        await until(lambda: scheduler.pending == 0)
        assert [number for batch in runner.batches for number, _ in batch] == [0, 3]

    with_scheduler(runner, talk)


def test_a_batch_has_images_of_one_runner_in_their_order() -> None:
    cheap, dear = Slow(), Slow()

    async def talk(scheduler: Scheduler) -> list[list[int]]:
        first = job(0, bounds=(0, 0))
        await submit(scheduler, first)
        await until(lambda: len(cheap.batches) == 1)
        jobs = [job(n, bounds=(rung, rung)) for n, rung in enumerate([0, 0, 1, 2, 0], start=1)]
        await submit(scheduler, *jobs)
        for runner in (cheap, dear):
            runner.go.set()
        answers = [await each.answer for each in (first, *jobs)]
        assert [answer.row.logits[0] for answer in answers] == [0, 1, 2, 3, 4, 5]
        return [[number for number, _ in batch] for batch in (*cheap.batches, *dear.batches)]

    assert with_scheduler(cheap, talk, dear, runners=[0, 1, 1]) == [[0], [1, 2], [5], [3, 4]]


def test_an_error_is_that_of_its_batch_alone(caplog: pytest.LogCaptureFixture) -> None:
    runner = Slow(error=MemoryError("no room"))
    runner.go.set()

    async def talk(scheduler: Scheduler) -> None:
        broken = job(0)
        await submit(scheduler, broken)
        with pytest.raises(MemoryError):
            await broken.answer
        runner.error = None
        whole = job(1)
        await submit(scheduler, whole)
        assert (await whole.answer).row.logits[0] == 1
        assert scheduler.pending == 0

    with_scheduler(runner, talk)
    assert "could not be run" in caplog.text


def test_a_server_that_stops_answers_what_it_has_accepted() -> None:
    runner = Slow(seconds=0.002)
    runner.go.set()

    async def talk(scheduler: Scheduler) -> list[Job]:
        jobs = [job(n) for n in range(100)]
        await submit(scheduler, *jobs)
        return jobs

    jobs = with_scheduler(runner, talk)
    assert all(isinstance(each.answer.result(), Answer) for each in jobs)


def test_the_ladder_learns_what_is_seen() -> None:
    made = ladder()
    assert [made.ms(rung) for rung in range(3)] == [1, 2.5, 4]
    assert made.highest_within(3) == 1 and made.highest_within(0.1) == 0 and made.highest_within(9) == 2
    for _ in range(100):  # a machine that is twice as slow, and images that are all hard
        made.learn([1] * 16, [1] * 16, 16 * 8.0, full=True)
    assert made.correction == pytest.approx(2, rel=1e-3)
    assert [made.ms(rung) for rung in range(3)] == pytest.approx([2, 8, 8], rel=1e-3)
    made.learn([0], [0], 50.0, full=False)
    assert made.correction == pytest.approx(2, rel=1e-3)


def test_a_server_has_bounds_of_its_own() -> None:
    made = ladder(share=(0.3, 0.7))
    assert (made.bottom, made.top) == (0, 1)
    assert made.bounds(None, None, None) == (0, 1)
    assert made.bounds(1.0, None, 0.85) == (1, 1)
    assert ladder(share=(1.0, 1.0)).bounds(None, None, None) == (2, 2)
    # Who asks for less than the server's smallest budget gets it.
    assert ladder(share=(1.0, 1.0)).bounds(0.25, None, None) == (0, 0)
    assert ladder().bounds(None, 2.6, None) == (0, 1)
    with pytest.raises(ServeError, match=r"budget must be at least 0\.25"):
        ladder(share=(None, 0.1))
    single = Ladder([], full_macs=40, thresholds=[0.5], num_exits=1)
    assert single.bounds(1.0, None, None) == (0, 0)
    with pytest.raises(RefusedError, match=r"budget must be at least 1\.0"):
        single.bounds(0.5, None, None)


def test_an_event_loop_that_is_behind_says_so() -> None:
    async def all_of_it() -> None:
        lateness = Lateness()
        lateness.start()
        await asyncio.sleep(0.1)
        before = lateness.seconds
        time.sleep(0.5)  # something holds the loop
        for _ in range(3):
            await asyncio.sleep(0)
        assert lateness.seconds > max(0.4, before)
        # One stall is not what is usual.
        assert 0.08 < lateness.usual < lateness.seconds
        while lateness.seconds > 0.2 or lateness.usual > 0.05:
            await asyncio.sleep(0.02)
        lateness.stop()

    asyncio.run(all_of_it())
