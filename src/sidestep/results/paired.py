"""Differences between runs of equal cost, seed by seed, and whether chance alone would make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from scipy.stats import ttest_1samp

from sidestep.results.markdown import table
from sidestep.results.run_groups import RunGroup, mean_and_deviation, run_groups
from sidestep.results.run_result import RunResult

# Runs are compared where their costs differ by at most this share of the larger one.
EQUAL_COST = 0.03
_LEVEL = 0.95
_WHAT = f"""Pairs of runs whose costs differ by at most {EQUAL_COST:.0%}, the better one first: differences in
points of accuracy between best checkpoints of the same seed, mean and deviation of a sample, interval of
{_LEVEL:.0%}, and p of a paired t-test (two-sided), as it is and after Holm's correction for so many pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A paired t-test.

    Attributes:
        p: two-sided.
        low: lower end of the confidence interval of the mean difference, in points.
        high: upper end.
    """

    p: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two groups of runs of equal cost, compared on the seeds that both have.

    Attributes:
        better: the group with the larger mean on these seeds.
        other: the other one.
        seeds: that both have, at least two.
        points: accuracy of `better` less that of `other`, in percent, seed by seed.
    """

    better: RunGroup
    other: RunGroup
    seeds: tuple[int, ...]
    points: tuple[float, ...]

    @property
    def test(self) -> PairedTest | None:
        """Return the paired t-test, or None where all differences are alike and have no deviation."""
        if max(self.points) - min(self.points) < 1e-9:
            return None
        found = ttest_1samp(self.points, 0.0)
        low, high = found.confidence_interval(_LEVEL)
        return PairedTest(p=float(found.pvalue), low=float(low), high=float(high))


def differences(results: Sequence[RunResult]) -> list[Difference]:
    """Return the differences between groups of equal cost on the same data that share seeds.

    Args:
        results: of runs.
    """
    found = []
    for one, other in combinations(run_groups(results), 2):
        seeds = sorted(set(one.seeds) & set(other.seeds))
        if len(seeds) < 2 or not _comparable(one, other):
            continue
        pairs = [(one.percent_of(seed), other.percent_of(seed)) for seed in seeds]
        points = [first - second for first, second in pairs]
        forward = fmean(points) >= 0
        found.append(
            Difference(
                better=one if forward else other,
                other=other if forward else one,
                seeds=tuple(seeds),
                points=tuple(points if forward else [-point for point in points]),
            )
        )
    return found


def corrected(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction, in their order (Holm 1979).

    >>> [round(p, 3) for p in corrected([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    least, found = 0.0, [0.0] * len(ps)
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - place) * ps[index]))
        found[index] = least
    return found


def paired_section(results: Sequence[RunResult]) -> list[str]:
    """Return the lines of a page about differences, none where no two groups can be compared."""
    found = differences(results)
    if not found:
        return []
    names = ["runs", "against", "seeds", "points", f"{_LEVEL:.0%}", "p", "corrected"]
    tests = [each.test for each in found]
    ps = iter(corrected([test.p for test in tests if test is not None]))
    rows = [
        [*_row(each), *(["-"] * 3 if test is None else _cells(test, next(ps)))]
        for each, test in zip(found, tests, strict=True)
    ]
    return ["", "## Paired differences", "", *_WHAT.splitlines(), "", *table(names, rows)]


def _row(difference: Difference) -> list[str]:
    mean, deviation = mean_and_deviation(difference.points)
    return [
        difference.better.name,
        difference.other.name,
        ", ".join(map(str, difference.seeds)),
        f"{mean:+.2f} ± {deviation:.2f}",
    ]


def _cells(test: PairedTest, corrected_p: float) -> list[str]:
    return [f"{test.low:+.2f} to {test.high:+.2f}", f"{test.p:.3f}", f"{corrected_p:.3f}"]


def _comparable(one: RunGroup, other: RunGroup) -> bool:
    costs = one.gflops[0], other.gflops[0]
    same_data = one.results[0].recipe["data"]["source"] == other.results[0].recipe["data"]["source"]
    return same_data and max(costs) - min(costs) <= EQUAL_COST * max(costs)
