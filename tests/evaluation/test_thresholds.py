"""Thresholds that meet a budget, and the curves of early exits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.errors import RecipeError
from sidestep.evaluation.thresholds import (
    ExitTable,
    Family,
    between_scores,
    geometric_shares,
    solve_thresholds,
    thresholds_for_budget,
)
from sidestep.routing.exit_rule import first_exits
from tests.reference.exits import literal_thresholds

COSTS = torch.tensor([1.0, 2.5, 4.0, 10.0], dtype=torch.float64)


def table(seed: int = 0, images: int = 400, levels: int | None = None) -> ExitTable:
    """Scores that rise from exit to exit, as those of a trained network do; right answers follow them."""
    generator = torch.Generator().manual_seed(seed)
    easiness = torch.rand(images, generator=generator)
    noise = 0.2 * torch.randn(4, images, generator=generator)
    scores = (easiness + 0.15 * torch.arange(4).unsqueeze(1) + noise).sigmoid()
    if levels is not None:
        scores = (scores * levels).round() / levels
    correct = torch.rand(4, images, generator=generator) < scores
    return ExitTable(scores=scores, correct=correct, macs=COSTS.unsqueeze(1).expand(-1, images))


@given(seed=st.integers(0, 100), q=st.floats(0.05, 1.95), levels=st.sampled_from([None, 8]))
def test_the_solver_is_the_literal_loop(seed: int, q: float, levels: int | None) -> None:
    scores = table(seed, images=60, levels=levels).scores
    shares = geometric_shares(4, q)
    assert solve_thresholds(scores, shares).tolist() == literal_thresholds(scores, shares)


def test_thresholds_of_shares_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    # Two of four leave at the first exit, then one of the two that are left.
    found = solve_thresholds(scores, torch.tensor([0.5, 0.25, 0.25]))
    assert found.tolist() == pytest.approx([0.8, 0.4])
    assert first_exits(scores, found).tolist() == [0, 0, 2, 1]
    # Nobody is to leave at the first exit; three want to at the second, all of equal score leave together.
    scores[1] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    found = solve_thresholds(scores, torch.tensor([0.0, 0.75, 0.25]))
    assert found.tolist() == [math.inf, 0.5]
    assert first_exits(scores, found).tolist() == [1, 1, 1, 1]


def test_accuracy_and_cost_of_given_exits_by_hand() -> None:
    correct = torch.tensor([[True, False, False], [True, True, False]])
    macs = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    found = ExitTable(scores=torch.zeros(2, 3), correct=correct, macs=macs).at(torch.tensor([0, 1, 0]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.macs == pytest.approx((1 + 20 + 3) / 3)
    assert found.exit_rates == pytest.approx([2 / 3, 1 / 3])


def test_between_two_rows_of_a_family_thresholds_are_on_the_line() -> None:
    family = Family(thresholds=torch.tensor([[0.0, 0.2], [0.4, 0.6], [0.8, 0.6]]))
    assert family.at(0.5).tolist() == pytest.approx([0.2, 0.4])
    assert family.at(1.25).tolist() == pytest.approx([0.5, 0.6])
    assert family.at(2.0).tolist() == pytest.approx([0.8, 0.6])


def test_shares_are_geometric() -> None:
    shares = geometric_shares(4, 0.5)
    torch.testing.assert_close(shares, torch.tensor([8, 4, 2, 1], dtype=torch.float64) / 15)
    assert geometric_shares(3, 1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert math.isfinite(geometric_shares(9, 1e9).sum().item())


@given(seed=st.integers(0, 50))
def test_a_family_never_lowers_a_threshold(seed: int) -> None:
    scores = table(seed, images=80).scores
    for family in (Family.geometric(scores), Family.shared(scores)):
        assert (family.thresholds.diff(dim=0) >= 0).all()
        assert first_exits(scores, family.at(0)).eq(0).all()
        assert first_exits(scores, family.at(len(family.thresholds) - 1)).eq(3).all()


@pytest.mark.parametrize("share", [0.12, 0.2, 0.35, 0.5, 0.75, 0.98])
def test_a_budget_is_met_and_not_exceeded(share: float) -> None:
    validation, budget = table(), share * COSTS[-1].item()
    thresholds = thresholds_for_budget(validation, budget, "confidence")
    assert 0.99 * budget <= validation.leaving(thresholds).macs <= budget
    # Other images of the same kind cost about the same.
    assert table(seed=1, images=5000).leaving(thresholds).macs == pytest.approx(budget, rel=0.1)


@given(low=st.floats(1.0, 10.0), high=st.floats(1.0, 10.0))
def test_thresholds_rise_with_the_budget(low: float, high: float) -> None:
    low, high = sorted((low, high))
    validation = table(images=100)
    few, many = (thresholds_for_budget(validation, budget, "confidence") for budget in (low, high))
    assert (few <= many).all()


def test_patience_takes_the_dearest_count_within_the_budget() -> None:
    counts = torch.tensor([[1.0] * 4, [2, 2, 1, 1], [3, 1, 2, 1], [4, 2, 3, 2]])
    validation = ExitTable(scores=counts, correct=counts > 1, macs=COSTS.unsqueeze(1).expand(-1, 4))
    two = thresholds_for_budget(validation, 6.0, "patience")
    assert two.tolist() == [2.0, 2.0, 2.0]
    assert validation.leaving(two).exit_rates == [0.0, 0.5, 0.25, 0.25]
    assert thresholds_for_budget(validation, 1.0, "patience").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("budget", [0.9, 10.1])
def test_a_budget_out_of_reach_is_refused_with_the_range(budget: float) -> None:
    with pytest.raises(RecipeError, match="budget must be between 1 and 10 MACs per image"):
        thresholds_for_budget(table(), budget, "confidence")


def test_anytime_is_every_exit_for_all_images() -> None:
    validation = table()
    points = validation.anytime()
    assert [point.macs for point in points] == COSTS.tolist()
    assert points[2].accuracy == pytest.approx(validation.correct[2].double().mean().item())
    assert points[2].exit_rates == [0.0, 0.0, 1.0, 0.0]


@given(seed=st.integers(0, 1000), place=st.floats(0.01, 0.99))
def test_solved_thresholds_lie_between_images(seed: int, place: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, 60, generator=generator)
    macs = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64).expand(-1, 60)
    table = ExitTable(scores=scores, correct=scores > 0.5, macs=macs)
    thresholds = thresholds_for_budget(table, 1 + 2 * place, "confidence")
    cost = table.leaving(thresholds).macs
    assert cost <= 1 + 2 * place
    for exit_scores, threshold in zip(scores[:-1], thresholds.tolist(), strict=True):
        leaving = exit_scores >= threshold
        if leaving.any() and not leaving.all():
            gap = exit_scores[leaving].min() - exit_scores[~leaving].max()
            assert float((exit_scores - threshold).abs().min()) == pytest.approx(
                float(gap) / 2, rel=1e-3, abs=1e-7
            )


def test_neighbours_of_a_precision_and_levels_stay_what_they_are() -> None:
    one = torch.tensor(0.5)
    scores = torch.stack([torch.stack([one, torch.nextafter(one, torch.tensor(1.0))]), torch.ones(2)])
    thresholds = scores[0, 1:]
    assert torch.equal(scores[0] >= between_scores(scores, thresholds, "confidence"), scores[0] >= thresholds)
    levels = torch.tensor([[1.0, 2.0, 3.0], [3.0, 3.0, 3.0]])
    assert between_scores(levels, torch.tensor([2.0]), "patience").tolist() == [2.0]
    assert between_scores(levels, torch.tensor([2.0]), "confidence").tolist() == [1.5]
