from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.losses.distillation import distillation_loss
from tests import strategies
from tests.reference import distillation as reference


@given(strategies.seeds, st.sampled_from([0.5, 1.0, 2.0, 4.0]), strategies.batch_sizes)
def test_the_loss_equals_the_literal_formula(seed: int, temperature: float, batch: int) -> None:
    generator = strategies.generator(seed)
    student, teacher = (torch.randn(batch, 4, generator=generator) * 2 for _ in range(2))
    loss = distillation_loss(student, teacher, temperature=temperature).item()
    assert loss == pytest.approx(
        reference.distillation_loss(student, teacher, temperature), rel=1e-4, abs=1e-5
    )


def test_equal_logits_up_to_a_constant_cost_nothing() -> None:
    logits = torch.randn(3, 5)
    assert distillation_loss(logits + 7, logits).item() == pytest.approx(0.0, abs=1e-6)


def test_two_classes_agree_with_hand_arithmetic() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * torch.tensor(3.0).log().item(), 0.0]])
    expected = 4 * (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log())
    assert distillation_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected.item())


def test_the_gradient_is_the_difference_of_probabilities_times_the_temperature() -> None:
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    distillation_loss(student, teacher, temperature=3.0).backward()
    difference = (student.detach() / 3).softmax(dim=1) - (teacher / 3).softmax(dim=1)
    torch.testing.assert_close(student.grad, 3.0 * difference / 4)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None


def test_half_precision_logits_are_compared_in_full_precision() -> None:
    logits = torch.randn(2, 3, dtype=torch.bfloat16)
    assert distillation_loss(logits, logits + 1).dtype == torch.float32
