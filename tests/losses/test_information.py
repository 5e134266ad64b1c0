"""Entropies and variances of gates: hand arithmetic, their bounds, and which gates have none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from sidestep.losses.information import conditional_entropy, marginal_gap, variance_gap
from tests import strategies


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Return (B, 1, K) logits of one gate."""
    return torch.tensor(probabilities).log().unsqueeze(1)


def bits(*probabilities: float) -> float:
    return -sum(p * math.log2(p) for p in probabilities if p > 0)


def test_entropies_are_those_of_hand_arithmetic() -> None:
    logits = logits_of([[0.9, 0.1], [0.3, 0.7]])
    nats = math.log(2)
    assert marginal_gap(logits).item() == pytest.approx(nats * (1 - bits(0.6, 0.4)), abs=1e-6)
    expected = nats * (bits(0.9, 0.1) + bits(0.3, 0.7)) / 2
    assert conditional_entropy(logits).item() == pytest.approx(expected, abs=1e-6)


def test_a_sure_gate_that_halves_the_images_has_one_bit_about_them() -> None:
    logits = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]], requires_grad=True)
    losses = marginal_gap(logits) + conditional_entropy(logits)
    losses.sum().backward()
    assert losses.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert variance_gap(logits[..., 1] - logits[..., 0]).item() == pytest.approx(0, abs=1e-6)


def test_a_gate_that_is_always_on_lacks_a_bit_and_all_variance() -> None:
    logits = torch.tensor([[[0.0, 300.0]], [[0.0, 200.0]]], requires_grad=True)
    gap = marginal_gap(logits)
    gap.sum().backward()
    assert gap.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert variance_gap(torch.tensor([[300.0], [200.0]])).item() == pytest.approx(0.25)


def test_three_options_have_the_entropy_of_three() -> None:
    assert marginal_gap(logits_of([[1 / 3] * 3] * 2)).item() == pytest.approx(0, abs=1e-6)
    assert conditional_entropy(logits_of([[1 / 3] * 3] * 2)).item() == pytest.approx(math.log(3))


@given(strategies.seeds)
def test_information_lies_between_nothing_and_what_the_options_can_say(seed: int) -> None:
    logits = 3 * torch.randn(6, 4, 3, generator=strategies.generator(seed))
    information = math.log(3) - marginal_gap(logits) - conditional_entropy(logits)
    assert bool((information > -1e-6).all()) and bool((information < math.log(3)).all())
    gap = variance_gap(logits[..., 0])
    torch.testing.assert_close(gap, 0.25 - torch.sigmoid(logits[..., 0]).var(dim=0, correction=0))
    assert bool((gap >= 0).all())
