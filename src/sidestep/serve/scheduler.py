"""The scheduler in front of a network: takes images from a queue, with the budget that their number allows.

An image is answered when it is done, and not when its batch is: runners write its index into a pipe, which
the event loop reads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.serve.ladder import Ladder, settings_of
from sidestep.serve.queueing import Answer, ImageQueue, Job
from sidestep.serve.refusal import RefusedError
from sidestep.serve.runner import Answers, Runner
from sidestep.serve.telemetry import Telemetry

# Of a deadline, for what was not foreseen: decoding, the network's wires, a busy machine.
_USED = 0.7
# Of a deadline, for which a request whose body has not come yet is counted.
_COMES = 0.5
# A batch takes at most this share of a deadline at the highest budget: nobody overtakes it.
_BATCH = 0.125
_MOST = 128
_READ = 65536

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Batch:
    jobs: list[Job]
    out: Answers | None = None
    places: dict[int, float] = field(default_factory=dict)
    since: float = 0.0
    ended: float = 0.0
    error: Exception | None = None


class Scheduler:
    """Runs one network's images, one batch at a time, in a thread of its own.

    Args:
        runners: of the network, by the indices of its ladder.
        ladder: its budgets, measured.
        telemetry: what is counted.
        deadline: in seconds, of images whose client names none.
        queue: most images that wait.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        ladder: Ladder,
        telemetry: Telemetry,
        *,
        deadline: float,
        queue: int,
    ) -> None:
        self.runners, self.ladder, self.telemetry = runners, ladder, telemetry
        self.deadline, self.most_waiting = deadline, queue
        threads = self.num_threads = runners[0].num_threads
        fits = int(_BATCH * 1e3 * deadline / max(ladder.ms(ladder.top), 1e-6))
        self.batch = min(max(fits, threads), max(_MOST, threads))
        # Several are dealt out to threads in twos at least; with these numbers every thread has as many.
        if self.batch > 2 * threads:
            self.batch -= self.batch % (2 * threads)
        self.pending = 0
        self._coming: dict[object, float] = {}
        self._queue = ImageQueue()
        self._ready = threading.Condition()
        self._stopping = False
        self._batches: deque[_Batch] = deque()
        self._rung = ladder.top
        self._free_since = time.monotonic()

    def start(self) -> None:
        """Start the thread; called in the event loop that is to answer."""
        self._loop = asyncio.get_running_loop()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._loop.add_reader(self._reading, self._heard)
        self._thread = threading.Thread(target=self._work, name="sidestep-serve", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Answer what has been accepted, and end the thread."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)
        self._heard()
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        os.close(self._writing)

    def admit(self, count: int, lowest: int, seconds: float) -> None:
        """Count images that will be submitted, or refuse them because even the lowest budget is not enough.

        Args:
            count: number of images.
            lowest: rung that they may be lowered to.
            seconds: until their deadline.

        Raises:
            RefusedError: 429, with the seconds after which it may be otherwise.
        """
        self._check(0, count, lowest, seconds)
        self.pending += count

    def announce(self, seconds: float) -> object:
        """Count a request of which only the headers have been read, or refuse it as `admit` does.

        Args:
            seconds: until its deadline.

        Returns:
            What `has_come` is given when its body has been read, or will not be.

        Raises:
            RefusedError: 429, where not even one image would be answered in time.
        """
        now = time.monotonic()
        # The dict is in the order of time. Who is slow keeps no place that others could have.
        while self._coming and now - next(iter(self._coming.values())) > _COMES * self.deadline:
            del self._coming[next(iter(self._coming))]
        self._check(len(self._coming), 1, self.ladder.bottom, seconds)
        coming = object()
        self._coming[coming] = now
        return coming

    def has_come(self, coming: object) -> None:
        """Count a request no more that was announced."""
        self._coming.pop(coming, None)

    def _check(self, coming: int, count: int, lowest: int, seconds: float) -> None:
        ms = self.ladder.ms(lowest)
        # Images whose client has gone are pending no more, and still take room.
        pending = max(self.pending, len(self._queue)) + coming
        waits = 1e-3 * ms * (pending + count)
        if pending and (pending + count > self.most_waiting or waits > _USED * seconds):
            self.telemetry.shed(count)
            after = max(1, math.ceil(1e-3 * ms * pending))
            raise RefusedError(
                429,
                f"the server is busy: {pending} images wait, more than the smallest budget answers in time; "
                f"try again in {after} s",
                {"Retry-After": str(after)},
            )

    def forget(self, count: int) -> None:
        """Take back images that were admitted and will not be submitted."""
        self.pending -= count

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let admitted images wait."""
        for job in jobs:
            job.answer.add_done_callback(self._over)
        with self._ready:
            for job in jobs:
                self._queue.add(job)
            self._ready.notify()
        self.telemetry.waiting(len(self._queue))

    def _over(self, _: asyncio.Future[Answer]) -> None:
        self.pending -= 1

    # What the thread does.

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._batches.append(batch)
            began = time.monotonic()
            for job in batch.jobs:
                job.began = began
            try:
                settings = settings_of(self.ladder, [job.rung for job in batch.jobs])
                images = stacked([job.image for job in batch.jobs])
                runner = self.runners[self.ladder.rungs[batch.jobs[0].rung].runner]
                batch.out = runner.room_for(len(batch.jobs))
                runner.run(images, settings, batch.out, self._writing)
            except Exception as error:
                _log.exception("a batch of %s images could not be run", len(batch.jobs))
                batch.error = error
            batch.ended = self._free_since = time.monotonic()
            os.write(self._writing, (-1).to_bytes(8, "little", signed=True))

    def _next(self) -> _Batch | None:
        """Return the next batch, or None at the end."""
        with self._ready:
            while True:
                while not len(self._queue) and not self._stopping:
                    self._ready.wait()
                    self._free_since = time.monotonic()
                if not len(self._queue):
                    return None
                if jobs := self._take():
                    # Between two batches without a rest lies what the second one takes as well.
                    return _Batch(jobs, since=self._free_since)

    def _take(self) -> list[Job]:
        now = time.monotonic()
        rung = self.ladder.highest_within(_USED * self._queue.allowed_ms(now))
        if rung != self._rung:
            self._rung = rung
            self.telemetry.budget(self.ladder.rungs[rung].budget)
        jobs: list[Job] = []
        while len(self._queue) and len(jobs) < self.batch:
            job = self._queue.next()
            job.rung = min(max(rung, job.lowest), job.highest)
            if jobs and not self._fits(job, jobs[0]):
                break
            self._queue.pop()
            if job.answer.done():  # its client has gone
                continue
            if now > job.expires:
                self._loop.call_soon_threadsafe(self._expire, job)
                continue
            jobs.append(job)
        return jobs

    def _fits(self, job: Job, other: Job) -> bool:
        """Return whether two images can run in one batch."""
        rungs = self.ladder.rungs
        same = rungs[job.rung].runner == rungs[other.rung].runner
        return same and job.image.dtype == other.image.dtype

    # What the event loop does.

    def _expire(self, job: Job) -> None:
        if not job.answer.done():
            self.telemetry.expired()
            job.answer.set_exception(
                RefusedError(504, "the request's timeout ended before its image could be run")
            )

    def _heard(self) -> None:
        while True:
            try:
                heard = os.read(self._reading, _READ)
            except BlockingIOError:
                return
            for index in np.frombuffer(heard, dtype=np.int64).tolist():
                if index < 0:
                    self._end(self._batches.popleft())
                else:
                    self._answer(self._batches[0], index)
            if len(heard) < _READ:
                return

    def _answer(self, batch: _Batch, index: int) -> None:
        job, now = batch.jobs[index], time.monotonic()
        assert batch.out is not None  # a runner has written into it
        row = batch.out.row(index)
        batch.places[index] = self.ladder.place(row)
        answer = Answer(
            row=row,
            rung=job.rung,
            queue_ms=1e3 * (job.began - job.arrived),
            ms=1e3 * (now - job.arrived),
        )
        self.telemetry.answered(answer, self.ladder.rungs[job.rung].budget)
        if not job.answer.done():
            job.answer.set_result(answer)

    def _end(self, batch: _Batch) -> None:
        for job in batch.jobs:
            if not job.answer.done():
                job.answer.set_exception(batch.error or RuntimeError("an image was not answered"))
        places = batch.places
        if batch.error is None and places:
            rungs = [batch.jobs[index].rung for index in places]
            full = len(places) >= max(self.batch // 2, self.num_threads)
            ms = 1e3 * (batch.ended - batch.since)
            with self._ready:
                self.ladder.learn(rungs, list(places.values()), ms, full=full)
        self.telemetry.waiting(len(self._queue))


def stacked(images: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return images as one batch.

    NumPy gives Python's lock away for every image that it copies, and a busy event loop is slow to give it
    back, while the engine has nothing to do; a memoryview keeps it.
    """
    batch = np.empty((len(images), *images[0].shape), images[0].dtype)
    room, size = batch.data.cast("B"), images[0].nbytes
    for n, image in enumerate(images):
        room[n * size : (n + 1) * size] = np.ascontiguousarray(image).data.cast("B")
    return batch


def new_job(image: Any, bounds: tuple[int, int], *, arrived: float, deadline: float, timeout: float | None,
            priority: int) -> Job:  # fmt: skip
    """Return an image on its way, in the event loop that is to answer it.

    Args:
        image: pixels, or normalised floats.
        bounds: lowest and highest rung.
        arrived: when its request came, in seconds of the monotonic clock.
        deadline: seconds in which it should be answered.
        timeout: seconds after which nobody wants it, or None.
        priority: smaller ones go first.
    """
    within = deadline if timeout is None else min(deadline, timeout)
    return Job(
        image=image,
        lowest=bounds[0],
        highest=bounds[1],
        priority=priority,
        arrived=arrived,
        deadline=arrived + within,
        expires=math.inf if timeout is None else arrived + timeout,
        answer=asyncio.get_running_loop().create_future(),
    )
