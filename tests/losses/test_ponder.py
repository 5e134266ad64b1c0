from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.losses.ponder import ponder_loss
from tests import strategies
from tests.reference import ponder as reference


@given(strategies.batch_sizes, st.integers(1, 4), strategies.seeds)
def test_value_and_gradient_equal_the_literal_ones(batch: int, stages: int, seed: int) -> None:
    draws = 1 + torch.rand(batch, stages, generator=strategies.generator(seed))
    ours, literal = draws.clone().requires_grad_(), draws.clone().requires_grad_()
    loss, expected = ponder_loss(ours), reference.ponder_loss(literal)
    torch.testing.assert_close(loss, expected)
    loss.square().backward()
    expected.square().backward()
    torch.testing.assert_close(ours.grad, literal.grad)


def test_hand_arithmetic() -> None:
    assert ponder_loss(torch.tensor([[2.0, 3.0], [4.0, 3.5]])).item() == 3 + 3.25


def test_half_precision_costs_are_summed_in_full_precision() -> None:
    assert ponder_loss(torch.full((300, 3), 2.5, dtype=torch.bfloat16)).item() == 7.5
