"""Images that wait: by priority, then in the order in which they came."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from sidestep.serve.runner import Row

# Of a long queue so many places are looked at.
_LOOKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client is told about an image.

    Attributes:
        row: what the network says.
        rung: with which budget.
        queue_ms: that it waited.
        ms: from its arrival to its answer.
    """

    row: Row
    rung: int
    queue_ms: float
    ms: float


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """An image on its way.

    Attributes:
        image: (H, W, C) uint8 pixels or (C, H, W) normalised float32.
        lowest: rung that it may be lowered to.
        highest: rung that it asks for.
        priority: smaller ones go first.
        arrived: when, in seconds of the monotonic clock.
        deadline: by when it should be answered.
        expires: after when nobody wants it any more.
        answer: what its client waits for.
        rung: with which it runs.
        began: when.
    """

    image: npt.NDArray[Any]
    lowest: int
    highest: int
    priority: int
    arrived: float
    deadline: float
    expires: float
    answer: asyncio.Future[Answer]
    rung: int = 0
    began: float = 0.0


class ImageQueue:
    """Waiting images. Not safe for several threads by itself."""

    def __init__(self) -> None:
        self.by_priority: dict[int, deque[Job]] = {}
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Job]:
        for priority in sorted(self.by_priority):
            yield from self.by_priority[priority]

    def add(self, job: Job) -> None:
        """Let an image wait behind all others of its priority."""
        self.by_priority.setdefault(job.priority, deque()).append(job)
        self.length += 1

    def pop(self) -> Job:
        """Return the image that is next."""
        priority = min(self.by_priority)
        jobs = self.by_priority[priority]
        job = jobs.popleft()
        if not jobs:
            del self.by_priority[priority]
        self.length -= 1
        return job

    def next(self) -> Job:
        """Return the image that is next, and leave it."""
        return self.by_priority[min(self.by_priority)][0]

    def allowed_ms(self, now: float) -> float:
        """Return how long an image may take so that all that wait are answered in time.

        The image at place k, from 1, waits for k of them: min over k of (deadline_k - now) / k. Of those
        whose time is over nobody can say more than that: now.
        """
        step = max(1, self.length // _LOOKS)
        allowed = math.inf
        for place, job in enumerate(self, start=1):
            if place % step == 0 or place == self.length:
                allowed = min(allowed, 1e3 * (job.deadline - now) / place)
        return allowed
