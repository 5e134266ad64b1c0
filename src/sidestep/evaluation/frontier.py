"""The frontier: which of all cascades of some classifiers is the cheapest for an accuracy.

Thresholds are solved on one half of the images and reported on the other, both ways, so that no image is
reported under a threshold that it has helped to choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from sidestep.evaluation.exit_curve import ExitSurvey
from sidestep.evaluation.thresholds import thresholds_for_budget

# Beyond these, triples are tried only where a pair is on the front.
_ALL_TRIPLES = 16
_TRIPLE_SHARES = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a classifier says about the images that are reported on.

    Attributes:
        name: of the classifier.
        log_probs: (N, C) in float32.
        macs: (N,) MACs of every image, in float64.
        survey: what all its exits say, for a network with early exits; None elsewhere.
    """

    name: str
    log_probs: Tensor
    macs: Tensor
    survey: ExitSurvey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """A classifier, or a cascade at one budget.

    Attributes:
        members: names, the cheapest first.
        accuracy: top-1, in [0, 1].
        error: its standard error.
        macs: mean MACs per image.
        shares: share of all images that reaches every member.
        kind: "static" where all images are treated alike, "exits" for early exits of one network, "cascade".
    """

    members: tuple[str, ...]
    accuracy: float
    error: float
    macs: float
    shares: tuple[float, ...]
    kind: str


def frontier_points(
    candidates: Sequence[Scores], labels: Tensor, *, num_budgets: int = 40, triples: bool = True
) -> list[FrontierPoint]:
    """Return all candidates alone, and all their ordered pairs and triples at every budget.

    An image goes on where the largest probability so far is small; what is said then is the mean of the
    log-probabilities of all members that were asked.

    Args:
        candidates: in any order.
        labels: (N,) classes.
        num_budgets: of every pair: evenly spaced shares of images that go on.
        triples: whether triples are tried: all of up to 16 candidates, and else those that begin with a pair
            of the front.
    """
    order = sorted(candidates, key=lambda each: float(each.macs.mean()))
    points = [_alone(each, labels) for each in order]
    points += [point for each in order if each.survey is not None for point in _exits(each, num_budgets)]
    for place, first in enumerate(order[:-1]):
        points += _pairs(first, order[place + 1 :], labels, num_budgets)
    if triples and len(order) > 2:
        by_name = {each.name: each for each in order}
        chosen = {point.members for point in front(points) if len(point.members) == 2}
        for three in combinations(order, 3):
            names = tuple(each.name for each in three)
            if len(order) <= _ALL_TRIPLES or names[:2] in chosen:
                points += _triple([by_name[name] for name in names], labels)
    return points


def front(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return the points that no other one beats in both cost and accuracy, by rising cost."""
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda each: (each.macs, -each.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def dominating(point: FrontierPoint, on_front: Sequence[FrontierPoint]) -> FrontierPoint | None:
    """Return the most accurate point that is at most as dear and at least as accurate, or None."""
    better = [
        each
        for each in on_front
        if each.macs <= point.macs and each.accuracy >= point.accuracy and each.members != point.members
    ]
    return max(better, key=lambda each: each.accuracy) if better else None


def _alone(scores: Scores, labels: Tensor) -> FrontierPoint:
    correct = (scores.log_probs.argmax(dim=1) == labels).double()
    return _point(
        (scores.name,), correct.mean().item(), len(labels), scores.macs.mean().item(), (1.0,), "static"
    )


def _exits(scores: Scores, num_budgets: int) -> list[FrontierPoint]:
    survey = scores.survey
    assert survey is not None
    halves = [survey.every_second(half).table("confidence", None) for half in (0, 1)]
    ends = survey.macs.mean(dim=1)
    points = []
    for budget in torch.linspace(float(ends[0]), float(ends[-1]), num_budgets, dtype=torch.float64).tolist():
        found = []
        for solving, reporting in (halves, halves[::-1]):
            least = solving.macs[0].mean().item()
            thresholds = thresholds_for_budget(solving, max(budget, least), "confidence")
            found.append(reporting.leaving(thresholds))
        accuracy, macs = (sum(getattr(each, name) for each in found) / 2 for name in ("accuracy", "macs"))
        points.append(_point((scores.name,), accuracy, len(survey.labels), macs, (1.0,), "exits"))
    return points


def _pairs(first: Scores, others: Sequence[Scores], labels: Tensor, num_budgets: int) -> list[FrontierPoint]:
    """Return the points of one first member with every other one behind it."""
    right = (first.log_probs.argmax(dim=1) == labels).double()
    both = torch.stack([(first.log_probs + each.log_probs).argmax(dim=1) == labels for each in others])
    macs = torch.stack([each.macs for each in others])
    confidence = first.log_probs.amax(dim=1).double()
    wanted = torch.linspace(0, 1, num_budgets, dtype=torch.float64)
    total = None
    for half in (0, 1):
        solve, report = slice(half, None, 2), slice(1 - half, None, 2)
        limits = torch.quantile(confidence[solve], wanted)
        order = confidence[report].argsort()
        going_on = torch.searchsorted(confidence[report][order], limits)
        kept = right[report].sum() - _sums(right[report][order].unsqueeze(0), going_on)
        gained = _sums(both[:, report][:, order].double(), going_on)
        spent = first.macs[report].sum() + _sums(macs[:, report][:, order], going_on)
        found = torch.stack([kept + gained, spent, going_on.double().expand_as(spent)])
        total = found if total is None else total + found
    assert total is not None
    accuracy, cost, shares = total / len(labels)
    return [
        _point(
            (first.name, other.name), accuracy[row, column].item(), len(labels), cost[row, column].item(),
            (1.0, shares[row, column].item()), "cascade",
        )
        for row, other in enumerate(others)
        for column in range(num_budgets)
    ]  # fmt: skip


def _triple(members: Sequence[Scores], labels: Tensor) -> list[FrontierPoint]:
    """Return the points of three members, over a grid of shares that reach the second and the third."""
    sums = [members[0].log_probs]
    for member in members[1:]:
        sums.append(sums[-1] + member.log_probs)
    right = [(said.argmax(dim=1) == labels).double() for said in sums]
    confidence = [
        (said / (place + 1)).log_softmax(dim=1).amax(dim=1).double() for place, said in enumerate(sums)
    ]
    steps = torch.linspace(0, 1, _TRIPLE_SHARES, dtype=torch.float64)[1:-1]
    points = []
    for to_second in steps.tolist():
        for to_third in steps.tolist():
            total = torch.zeros(4, dtype=torch.float64)
            for half in (0, 1):
                solve, report = slice(half, None, 2), slice(1 - half, None, 2)
                first = torch.quantile(confidence[0][solve], to_second)
                unsure = confidence[1][solve][confidence[0][solve] < first]
                second = torch.quantile(unsure, to_third) if len(unsure) else unsure.new_tensor(-math.inf)
                go = confidence[0][report] < first
                on = go & (confidence[1][report] < second)
                said = torch.where(on, right[2][report], torch.where(go, right[1][report], right[0][report]))
                spent = members[0].macs[report] + go * members[1].macs[report] + on * members[2].macs[report]
                total += torch.stack([said.sum(), spent.sum(), go.double().sum(), on.double().sum()])
            accuracy, cost, reach, last = (total / len(labels)).tolist()
            names = tuple(member.name for member in members)
            points.append(_point(names, accuracy, len(labels), cost, (1.0, reach, last), "cascade"))
    return points


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """Return (R, Q) sums of the first values of every row, given how many."""
    before = torch.cat([values.new_zeros(len(values), 1), values.cumsum(dim=1)], dim=1)
    return before[:, counts]


def _point(
    members: tuple[str, ...], accuracy: float, count: int, macs: float, shares: tuple[float, ...], kind: str
) -> FrontierPoint:
    error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / count)
    return FrontierPoint(members=members, accuracy=accuracy, error=error, macs=macs, shares=shares, kind=kind)
