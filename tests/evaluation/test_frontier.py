"""The frontier against literal cascades, image by image."""

import math

import pytest
import torch
from torch import Tensor

from sidestep.evaluation.exit_curve import ExitSurvey
from sidestep.evaluation.frontier import FrontierPoint, Scores, dominating, front, frontier_points


def scores(name: str, macs: float, seed: int, *, count: int = 60, sharpness: float = 2.0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator)
    logits[torch.arange(count), labels(count)] += sharpness
    log_probs = logits.log_softmax(dim=1)
    return Scores(name=name, log_probs=log_probs, macs=torch.full((count,), macs, dtype=torch.float64))


def labels(count: int = 60) -> Tensor:
    return torch.arange(count) % 4


def literal_pair(first: Scores, second: Scores, share: float) -> tuple[float, float]:
    """Return accuracy and MACs of a pair, with thresholds from the other half, image by image."""
    right, macs = 0.0, 0.0
    confidence = first.log_probs.amax(dim=1).double()
    for index in range(len(confidence)):
        limit = torch.quantile(confidence[1 - index % 2 :: 2], share)
        said = first.log_probs[index]
        macs += first.macs[index].item()
        if confidence[index] < limit:
            said = said + second.log_probs[index]
            macs += second.macs[index].item()
        right += said.argmax().item() == labels()[index].item()
    return right / len(confidence), macs / len(confidence)


def test_every_pair_is_what_a_literal_cascade_is() -> None:
    members = [scores("a", 1.0, 1), scores("b", 3.0, 2, sharpness=3.0), scores("c", 9.0, 3, sharpness=4.0)]
    points = frontier_points(members, labels(), num_budgets=7, triples=False)
    pairs = [point for point in points if point.kind == "cascade"]
    assert len(pairs) == 3 * 7
    shares = torch.linspace(0, 1, 7, dtype=torch.float64).tolist()
    by_name = {each.name: each for each in members}
    for place, point in enumerate(pairs):
        first, second = (by_name[name] for name in point.members)
        accuracy, macs = literal_pair(first, second, shares[place % 7])
        assert point.accuracy == pytest.approx(accuracy) and point.macs == pytest.approx(macs)
        assert point.error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 60))
        assert point.macs == pytest.approx(by_name[point.members[0]].macs[0].item() + point.shares[1] * (
            by_name[point.members[1]].macs[0].item()
        ))  # fmt: skip


def test_triples_go_on_from_member_to_member() -> None:
    members = [scores("a", 1.0, 1), scores("b", 3.0, 2, sharpness=3.0), scores("c", 9.0, 3, sharpness=4.0)]
    points = [point for point in frontier_points(members, labels(), num_budgets=3) if len(point.members) == 3]
    assert points and all(point.members == ("a", "b", "c") for point in points)
    for point in points:
        first, second, third = point.shares
        assert first == 1.0 and 1.0 >= second >= third >= 0.0
        assert point.macs == pytest.approx(1.0 + 3.0 * second + 9.0 * third)


def test_candidates_are_ordered_by_cost_whatever_order_they_come_in() -> None:
    members = [scores("dear", 9.0, 3), scores("cheap", 1.0, 1)]
    points = frontier_points(members, labels(), num_budgets=2)
    assert {point.members for point in points if point.kind == "cascade"} == {("cheap", "dear")}
    alone = [point for point in points if point.kind == "static"]
    assert [point.members for point in alone] == [("cheap",), ("dear",)]


def test_networks_with_exits_come_with_their_budgets() -> None:
    one = scores("exits", 5.0, 1)
    survey = ExitSurvey(
        exit_logits=torch.stack([scores("x", 0.0, 4).log_probs, one.log_probs]),
        labels=labels(),
        macs=torch.tensor([[2.0], [5.0]], dtype=torch.float64).expand(2, 60).contiguous(),
    )
    with_exits = Scores(name="exits", log_probs=one.log_probs, macs=one.macs, survey=survey)
    points = frontier_points([with_exits, scores("b", 9.0, 2)], labels(), num_budgets=5)
    found = [point for point in points if point.kind == "exits"]
    assert len(found) == 5 and found[0].macs == pytest.approx(2.0, abs=0.2) and found[-1].macs <= 5.0


def point(accuracy: float, macs: float, name: str) -> FrontierPoint:
    return FrontierPoint(
        members=(name,), accuracy=accuracy, error=0.0, macs=macs, shares=(1.0,), kind="static"
    )


def test_a_front_has_what_no_other_point_beats() -> None:
    a, b, c, d = point(0.8, 1.0, "a"), point(0.7, 2.0, "b"), point(0.9, 3.0, "c"), point(0.9, 4.0, "d")
    on_front = front([d, c, b, a])
    assert on_front == [a, c]
    assert dominating(b, on_front) == a and dominating(d, on_front) == c
    assert dominating(a, on_front) is None and dominating(c, on_front) is None


def test_many_candidates_are_searched_in_seconds() -> None:
    """Two hundred would take a minute; thirty show that no loop goes over images."""
    members = [scores(str(index), 1.0 + index, index, count=400) for index in range(30)]
    points = frontier_points(members, labels(400), num_budgets=40)
    pairs = {point.members for point in points if len(point.members) == 2}
    assert len(pairs) == 30 * 29 // 2
