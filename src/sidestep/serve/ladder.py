"""The budgets of a served network: what each takes here and now, and which of them a queue allows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidestep.errors import ServeError
from sidestep.plan.levels import Level, rising
from sidestep.routing.dial import MOST, DialLevel
from sidestep.serve.refusal import wrong
from sidestep.serve.runner import Doubles, Row, Runner

_CLOSE = 1e-6
# Of what was seen, the share that the newest batch has.
_NEWEST = 0.2
# Images of every thread while times are measured.
_PER_THREAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A budget.

    Attributes:
        budget: mean MACs as a share of the static network's; 1 for a network with one budget.
        macs: mean MACs per image; None where nobody has measured them.
        accuracy: top-1 in [0, 1]; None where nobody has measured it.
        runner: index of what runs it, where a network's routers are asked for budgets.
    """

    budget: float
    macs: float | None
    accuracy: float | None
    runner: int = 0


class Ladder:
    """Budgets from the cheapest to the dearest, and how long an image takes with each.

    An exit's time is measured when the server starts. A budget's is the mean over the exits at which its
    images leave, which is what the curve says at first and what was seen later; all times are multiplied by
    what batches took against what was predicted, so that a busier machine is noticed.

    Attributes:
        settings: (R, E) thresholds of all budgets; in a `DialLadder` (R, L) biases.
        exit_ms: (runners, E + 1) of all exits, the end last; in a `DialLadder` of skipping and executing all.
        rates: (R, E + 1) share of images that leave there.

    Args:
        levels: of a curve; none for a network with one budget.
        full_macs: of the static network.
        thresholds: (E) of the network with one budget.
        num_exits: number E of early exits.
        share: (smallest, largest) budget that the server is asked for; None is no limit.
        runners: index of what runs each level; None where one runner runs all.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        full_macs: float,
        thresholds: Sequence[float],
        num_exits: int,
        share: tuple[float | None, float | None] = (None, None),
        runners: Sequence[int] | None = None,
    ) -> None:
        of = runners or [0] * max(len(levels), 1)
        if levels:
            self.rungs = [
                Rung(budget=level.macs / full_macs, macs=level.macs, accuracy=level.accuracy, runner=each)
                for level, each in zip(levels, of, strict=True)
            ]
            self.settings = np.array([level.thresholds for level in levels], dtype=np.float64)
            self.rates = np.array([level.exit_rates for level in levels])
        else:
            self.rungs = [Rung(budget=1.0, macs=None, accuracy=None)]
            self.settings = np.array([thresholds], dtype=np.float64).reshape(1, num_exits)
            self.rates = np.full((1, num_exits + 1), 1 / (num_exits + 1))
        self.full_macs = full_macs
        self.exit_ms = np.ones((max(of) + 1, num_exits + 1))
        self._begin(share)

    def _begin(self, share: tuple[float | None, float | None]) -> None:
        self.correction = 1.0
        smallest, largest = share
        self.top = len(self.rungs) - 1 if largest is None or largest >= 1 else self._at_most(largest)
        self.bottom = 0 if smallest is None else self._at_least(smallest)

    def _at_most(self, budget: float) -> int:
        found = [n for n, rung in enumerate(self.rungs) if rung.budget <= budget + _CLOSE]
        if not found:
            raise ServeError(
                f"budget must be at least {self.rungs[0].budget:.4f}, the network's smallest, got {budget}"
            )
        return found[-1]

    def _at_least(self, budget: float) -> int:
        # The one at a budget where there is none between: --budget 0.5 --min-budget 0.5 is one budget.
        found = [n for n, rung in enumerate(self.rungs) if rung.budget <= budget + _CLOSE or budget >= 1]
        return min(found[-1] if found else 0, self.top)

    def ms(self, rung: int) -> float:
        """Return the predicted mean milliseconds of an image in a full batch, on all threads."""
        return float(self.rates[rung] @ self.exit_ms[self.rungs[rung].runner]) * self.correction

    def measure(self, runners: Sequence[Runner], images: npt.NDArray[np.uint8]) -> None:
        """Measure what leaving at every exit takes.

        Args:
            runners: of the network.
            images: (H, W, C) pixels of one picture; which one does not matter, since all exits are forced.
        """
        for place, runner in enumerate(runners):
            for exit in range(runner.num_exits + 1):
                forced = np.full(runner.num_exits, runner.never)
                forced[exit:] = runner.always
                self.exit_ms[place, exit], _ = _timed(runner, images, forced)

    def place(self, row: Row) -> float:
        """Return where an image stands between the ends whose times are measured: here its exit."""
        return float(row.exit)

    def bounds(
        self, budget: float | None, budget_ms: float | None, min_accuracy: float | None
    ) -> tuple[int, int]:
        """Return the lowest and the highest rung that a request allows.

        Args:
            budget: its largest share of the MACs; from 1 on there is no limit.
            budget_ms: its largest mean milliseconds.
            min_accuracy: its smallest accuracy, in [0, 1].

        Raises:
            RefusedError: when none does.
        """
        highest, lowest = self.top, self.bottom
        rungs = range(self.top + 1)
        if budget is not None and budget < 1:
            fit = [n for n in rungs if self.rungs[n].budget <= budget + _CLOSE]
            if not fit:
                raise wrong(f"budget must be at least {self.rungs[0].budget:.4f} here, got {budget}")
            highest = min(highest, fit[-1])
        if budget_ms is not None:
            fit = [n for n in rungs if self.ms(n) <= budget_ms]
            if not fit:
                raise wrong(f"budget_ms must be at least {self.ms(0):.3g} here and now, got {budget_ms}")
            highest = min(highest, fit[-1])
        # Who asks for less than the server's smallest budget gets it.
        lowest = min(lowest, highest)
        if min_accuracy is not None:
            lowest = max(lowest, self._accurate(min_accuracy))
            if lowest > highest:
                raise wrong(
                    f"min_accuracy {min_accuracy} must be one of the budget that is asked for, and takes a "
                    f"budget of {self.rungs[lowest].budget:.4f}, beyond {self.rungs[highest].budget:.4f}"
                )
        return lowest, highest

    def _accurate(self, accuracy: float) -> int:
        known = [(n, rung.accuracy) for n, rung in enumerate(self.rungs) if rung.accuracy is not None]
        if not known:
            raise wrong("min_accuracy needs a network whose accuracy is known, and this one's is not")
        fit = [n for n, reached in known if reached >= accuracy]
        if not fit:
            raise wrong(f"min_accuracy must be at most {known[-1][1]:.4f} here, got {accuracy}")
        return fit[0]

    def highest_within(self, ms: float) -> int:
        """Return the highest rung of which an image takes at most so long, or the lowest one there is."""
        fit = [n for n in range(self.bottom, self.top + 1) if self.ms(n) <= ms]
        return fit[-1] if fit else self.bottom

    def learn(self, rungs: Sequence[int], places: Sequence[float], ms: float, *, full: bool) -> None:
        """Take notice of a batch.

        Args:
            rungs: of its images.
            places: of its images.
            ms: that the batch took.
            full: whether it was large enough for every thread to have had its share.
        """
        shares = self._shares(np.array(places, dtype=np.float64))
        taken = self.exit_ms[[self.rungs[rung].runner for rung in rungs]]
        expected = float((shares * taken).sum())
        if full and expected > 0:
            self.correction += _NEWEST * (ms / expected - self.correction)
        for rung in set(rungs):
            of_rung = shares[np.array(rungs) == rung]
            # One image says less than many.
            weight = _NEWEST * min(1.0, len(of_rung) / 16)
            self.rates[rung] += weight * (of_rung.mean(axis=0) - self.rates[rung])

    def _shares(self, places: Doubles) -> Doubles:
        """Return (N, ends) how near images stand to every end."""
        ends = np.arange(self.exit_ms.shape[1])
        shares: Doubles = np.clip(1 - np.abs(places[:, None] - ends), 0, 1)
        return shares


class DialLadder(Ladder):
    """Budgets of gates, by biases: an image's time is a straight line in its MACs.

    Its ends are what takes an image whose gates skip all that they can, and one whose gates execute all.

    Args:
        levels: of a dial, on top of what the network has.
        full_macs: of the static network.
        share: as of a `Ladder`.
    """

    def __init__(
        self,
        levels: Sequence[DialLevel],
        *,
        full_macs: float,
        share: tuple[float | None, float | None] = (None, None),
    ) -> None:
        worth = rising(levels)
        self.rungs = [
            Rung(budget=level.macs / full_macs, macs=level.macs, accuracy=level.accuracy) for level in worth
        ]
        self.settings = np.array([level.biases for level in worth], dtype=np.float64)
        self.rates = np.full((len(worth), 2), 0.5)
        self.exit_ms, self._macs = np.ones((1, 2)), (0.0, full_macs)
        self._begin(share)

    def measure(self, runners: Sequence[Runner], images: npt.NDArray[np.uint8]) -> None:
        (runner,) = runners
        found = [_timed(runner, images, np.full(self.settings.shape[1], bias)) for bias in (-MOST, MOST)]
        self.exit_ms[0] = [ms for ms, _ in found]
        self._macs = found[0][1], found[1][1]
        self.rates = self._shares(np.array([self._between(rung.macs or 0.0) for rung in self.rungs]))

    def place(self, row: Row) -> float:
        """Return where an image stands between skipping all, 0, and executing all, 1."""
        return self._between(row.macs)

    def _between(self, macs: float) -> float:
        least, most = self._macs
        return min(max((macs - least) / max(most - least, 1.0), 0.0), 1.0)


def settings_of(ladder: Ladder, rungs: Sequence[int]) -> Doubles:
    """Return the thresholds or biases of images with these rungs, a row each."""
    settings: Doubles = ladder.settings[list(rungs)]
    return settings


def _timed(runner: Runner, image: npt.NDArray[np.uint8], settings: Doubles) -> tuple[float, float]:
    """Return milliseconds and MACs of an image in a full batch that is run with the same settings."""
    batch = np.repeat(image[None], _PER_THREAD * runner.num_threads, axis=0)
    rows, seconds = np.tile(settings, (len(batch), 1)), []
    with open(os.devnull, "wb", buffering=0) as nobody:
        for _ in range(3):  # the first one fills caches
            out, began = runner.room_for(len(batch)), time.perf_counter()
            runner.run(batch, rows, out, nobody.fileno())
            seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds) / len(batch), out.row(0).macs
