"""The halting rule and the halting units, against the papers' formulas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sidestep.routing.halting_units import Halting, HaltingRouter, HaltingUnit, SpatialHaltingUnit
from tests import strategies
from tests.doubles import enliven
from tests.reference import halting as reference

# In sixteenths, whose sums are exact, so that a sum that meets 1 - eps meets it here and there.
scores = st.lists(
    st.lists(st.integers(0, 16), min_size=3, max_size=3), min_size=0, max_size=5
)  # units x images
EPS = 1 / 16


def weights_of(by_unit: Sequence[Tensor], batch: int) -> tuple[Tensor, Halting]:
    """Return p (L, B, 1, h, w) for the scores of all units but the last, and the state behind the stage."""
    state, weights = Halting.begin(batch, torch.device("cpu")), []
    for score in [*by_unit, torch.ones(())]:
        weight, state = state.step(score, EPS)
        weights.append(weight)
    return torch.stack(torch.broadcast_tensors(*weights)), state


@given(scores)
def test_weights_units_and_remainder_equal_the_literal_ones(drawn: list[list[int]]) -> None:
    by_unit = [torch.tensor(row).view(3, 1, 1, 1) / 16 for row in drawn]
    weights, state = weights_of(by_unit, 3)
    assert not state.running.any()
    for image in range(3):
        num_units, remainder, expected = reference.halting([row[image, 0, 0, 0] for row in by_unit], EPS)
        assert weights[:, image, 0, 0, 0].tolist() == torch.stack(expected).tolist()
        assert state.num_units[image].item() == num_units
        assert state.ponder()[image].item() == num_units + remainder.item()


@given(st.integers(1, 4), st.integers(0, 6), strategies.seeds)
def test_the_weights_of_every_position_sum_to_one(batch: int, units: int, seed: int) -> None:
    draws = torch.rand(units, batch, 1, 3, 2, generator=strategies.generator(seed))
    weights, state = weights_of(list(draws), batch)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]))
    assert bool((weights >= 0).all())
    assert bool(((state.num_units >= 1) & (state.num_units <= units + 1)).all())
    assert bool((state.ponder() > state.num_units - 1e-6).all())
    assert bool((state.ponder() <= state.num_units + 1 + 1e-6).all())


@given(scores.filter(len), strategies.seeds)
def test_gradients_of_weights_and_ponder_equal_the_literal_ones(drawn: list[list[int]], seed: int) -> None:
    values = torch.tensor(drawn).float() / 16  # (L - 1, B)
    factors = torch.randn(len(drawn) + 1, 3, generator=strategies.generator(seed))
    ours, literal = values.clone().requires_grad_(), values.clone().requires_grad_()
    weights, state = weights_of(list(ours.view(-1, 3, 1, 1, 1)), 3)
    (factors * weights.view(-1, 3)).sum().add(state.ponder().square().sum()).backward()
    total = torch.tensor(0.0)
    for image in range(3):
        num_units, remainder, expected = reference.halting(list(literal[:, image]), EPS)
        total = total + (factors[:, image] * torch.stack(expected)).sum() + (num_units + remainder) ** 2
    if total.requires_grad:
        total.backward()
    expected_grad = torch.zeros_like(values) if literal.grad is None else literal.grad
    torch.testing.assert_close(ours.grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_a_first_score_of_one_halts_at_once_and_zeros_run_to_the_end() -> None:
    by_unit = [torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)] * 3
    weights, state = weights_of(by_unit, 2)
    assert weights.view(4, 2).T.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert state.ponder().flatten().tolist() == [2.0, 5.0]


def test_what_comes_after_the_end_is_not_looked_at() -> None:
    halts, nan = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), torch.nan)
    weights, state = weights_of([halts, nan], 1)
    assert weights.flatten().tolist() == [1.0, 0.0, 0.0]
    assert state.ponder().item() == 2.0


def test_the_score_of_an_image_equals_the_literal_one() -> None:
    unit, x = HaltingUnit(8).eval(), torch.randn(4, 8, 5, 3)
    enliven(unit)
    actual = torch.sigmoid(unit(x))
    assert actual.shape == (4, 1, 1, 1)
    expected = torch.stack([reference.act_score(unit.state_dict(), image) for image in x])
    torch.testing.assert_close(actual.flatten(), expected)


def test_the_scores_of_positions_equal_the_literal_ones() -> None:
    unit, x = SpatialHaltingUnit(8).eval(), torch.randn(2, 8, 4, 3)
    enliven(unit)
    actual = torch.sigmoid(unit(x))
    assert actual.shape == (2, 1, 4, 3)
    for image in range(2):
        for row in range(4):
            for column in range(3):
                expected = reference.sact_score(unit.state_dict(), x[image], row, column)
                torch.testing.assert_close(actual[image, 0, row, column], expected)


@pytest.mark.parametrize("spatial", [False, True])
def test_units_start_open_with_a_bias_of_minus_three(spatial: bool) -> None:
    router = HaltingRouter([16, 16, 16], [0, 0, 0], spatial=spatial)
    for unit in router.halting.values():
        biases = [parameter for name, parameter in unit.named_parameters() if name.endswith("score.bias")]
        assert [bias.tolist() for bias in biases] == [[-3.0]]
    zeros = torch.zeros(2, 16, 4, 4)
    assert torch.sigmoid(router(1, zeros, None)[0]).max().item() == pytest.approx(0.0474, abs=1e-4)


@pytest.mark.parametrize("spatial", [False, True])
def test_a_router_asks_in_front_of_every_unit_that_opens_no_stage(spatial: bool) -> None:
    router = HaltingRouter([4, 4, 4, 8, 8, 16], [0, 0, 1, 1, 1, 2], spatial=spatial)
    assert list(router.halting) == ["1", "3", "4"]
    logits, state = router(2, torch.randn(3, 4, 5, 5), "state")
    assert state == "state"
    assert torch.sigmoid(logits).tolist() == [[[[0.0]]]] * 3


def test_the_price_of_a_score_is_paid_where_units_ran() -> None:
    positions = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    positions[1, 0, 0, 0] = positions[2] = True
    spatial = HaltingRouter([4, 4], [0, 0], spatial=True).share_of_macs(1, positions)
    assert spatial.tolist() == pytest.approx([0.0, (9 * 1 + 1) / (9 * 16 + 1), 1.0])
    images = positions.flatten(1).any(dim=1).view(3, 1, 1, 1)
    assert HaltingRouter([4, 4], [0, 0], spatial=False).share_of_macs(1, images).tolist() == [0.0, 1.0, 1.0]
