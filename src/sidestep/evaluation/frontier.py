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
from sidestep.evaluation.thresholds import Family, thresholds_for_budget
from sidestep.progress import through
from sidestep.types import Unit

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
        ms: (N,) milliseconds of every image by a latency book, or None where none was measured.
    """

    name: str
    log_probs: Tensor
    macs: Tensor
    survey: ExitSurvey | None = None
    ms: Tensor | None = None

    def costs(self) -> Tensor:
        """Return (2, N) MACs and milliseconds, which are no numbers where none were measured."""
        return torch.stack([self.macs, torch.full_like(self.macs, math.nan) if self.ms is None else self.ms])


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
        ms: mean milliseconds per image, or None where a member was not measured.
    """

    members: tuple[str, ...]
    accuracy: float
    error: float
    macs: float
    shares: tuple[float, ...]
    kind: str
    ms: float | None = None

    def cost(self, unit: Unit) -> float:
        """Return the mean cost per image; infinite where it was not measured."""
        if unit == "MACs":
            return self.macs
        return math.inf if self.ms is None else self.ms


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
    for place, first in enumerate(through(order[:-1], "pairs", len(order) - 1)):
        points += _pairs(first, order[place + 1 :], labels, num_budgets)
    if triples and len(order) > 2:
        by_name = {each.name: each for each in order}
        chosen = {point.members for point in front(points) if len(point.members) == 2}
        tried = [
            names
            for names in combinations([each.name for each in order], 3)
            if len(order) <= _ALL_TRIPLES or names[:2] in chosen
        ]
        for names in through(tried, "triples", len(tried)):
            points += _triple([by_name[name] for name in names], labels)
    return points


def front(points: Sequence[FrontierPoint], unit: Unit = "MACs") -> list[FrontierPoint]:
    """Return the points that no other one beats in both cost and accuracy, by rising cost.

    Points whose cost was not measured are left out.
    """
    best: list[FrontierPoint] = []
    known = [point for point in points if point.cost(unit) < math.inf]
    for point in sorted(known, key=lambda each: (each.cost(unit), -each.accuracy)):
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
    costs = scores.costs().mean(dim=1).tolist()
    return _point((scores.name,), correct.mean().item(), len(labels), costs, (1.0,), "static")


def _exits(scores: Scores, num_budgets: int) -> list[FrontierPoint]:
    survey = scores.survey
    assert survey is not None
    halves = [survey.every_second(half).table("confidence", None) for half in (0, 1)]
    families = [Family.of(half.scores, "confidence") for half in halves]
    ends = survey.macs.mean(dim=1)
    points = []
    for budget in torch.linspace(float(ends[0]), float(ends[-1]), num_budgets, dtype=torch.float64).tolist():
        found = []
        for solving, reporting, family in zip(halves, halves[::-1], families, strict=True):
            least = solving.macs[0].mean().item()
            thresholds = thresholds_for_budget(solving, max(budget, least), "confidence", family=family)
            found.append(reporting.leaving(thresholds))
        accuracy = sum(each.accuracy for each in found) / 2
        costs = [sum(each.macs for each in found) / 2, sum(each.ms or math.nan for each in found) / 2]
        points.append(_point((scores.name,), accuracy, len(survey.labels), costs, (1.0,), "exits"))
    return points


def _pairs(first: Scores, others: Sequence[Scores], labels: Tensor, num_budgets: int) -> list[FrontierPoint]:
    """Return the points of one first member with every other one behind it."""
    right = (first.log_probs.argmax(dim=1) == labels).double()
    both = torch.stack([(first.log_probs + each.log_probs).argmax(dim=1) == labels for each in others])
    costs = torch.stack([each.costs() for each in others])
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
        own = first.costs()[:, report].sum(dim=1).view(1, 2, 1)
        spent = (own + _sums(costs[:, :, report][:, :, order], going_on)).unbind(dim=1)
        found = torch.stack([kept + gained, *spent, going_on.double().expand_as(gained)])
        total = found if total is None else total + found
    assert total is not None
    # Lists first: taking single numbers from tensors would take longer than the search.
    rows = (total / len(labels)).permute(1, 2, 0).tolist()
    return [
        _point((first.name, other.name), accuracy, len(labels), [macs, ms], (1.0, share), "cascade")
        for other, row in zip(others, rows, strict=True)
        for accuracy, macs, ms, share in row
    ]


def _triple(members: Sequence[Scores], labels: Tensor) -> list[FrontierPoint]:
    """Return the points of three members, over a grid of shares that reach the second and the third."""
    sums = [members[0].log_probs]
    for member in members[1:]:
        sums.append(sums[-1] + member.log_probs)
    right = [(said.argmax(dim=1) == labels).double() for said in sums]
    confidence = [
        (said / (place + 1)).log_softmax(dim=1).amax(dim=1).double() for place, said in enumerate(sums)
    ]
    costs = [member.costs() for member in members]
    steps = torch.linspace(0, 1, _TRIPLE_SHARES, dtype=torch.float64)[1:-1]
    points = []
    for to_second in steps.tolist():
        for to_third in steps.tolist():
            total = torch.zeros(5, dtype=torch.float64)
            for half in (0, 1):
                solve, report = slice(half, None, 2), slice(1 - half, None, 2)
                first = torch.quantile(confidence[0][solve], to_second)
                unsure = confidence[1][solve][confidence[0][solve] < first]
                second = torch.quantile(unsure, to_third) if len(unsure) else unsure.new_tensor(-math.inf)
                go = confidence[0][report] < first
                on = go & (confidence[1][report] < second)
                said = torch.where(on, right[2][report], torch.where(go, right[1][report], right[0][report]))
                first_cost, second_cost, third_cost = (cost[:, report] for cost in costs)
                spent = (first_cost + go * second_cost + on * third_cost).sum(dim=1)
                total += torch.stack([said.sum(), *spent, go.double().sum(), on.double().sum()])
            accuracy, macs, ms, reach, last = (total / len(labels)).tolist()
            names = tuple(member.name for member in members)
            points.append(_point(names, accuracy, len(labels), [macs, ms], (1.0, reach, last), "cascade"))
    return points


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """Return (..., Q) sums of the first of (..., N) values, given how many."""
    return torch.nn.functional.pad(values.cumsum(dim=-1), (1, 0))[..., counts]


def _point(
    members: tuple[str, ...],
    accuracy: float,
    count: int,
    costs: Sequence[float],
    shares: tuple[float, ...],
    kind: str,
) -> FrontierPoint:
    macs, ms = costs
    return FrontierPoint(
        members=members,
        accuracy=accuracy,
        error=math.sqrt(max(accuracy * (1 - accuracy), 0.0) / count),
        macs=macs,
        shares=shares,
        kind=kind,
        ms=None if math.isnan(ms) else ms,
    )
