from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.losses.budget import cost_loss, global_mean
from sidestep.types import CostModel, Decisions
from tests import strategies
from tests.reference import budget as reference

PRICES = CostModel(
    fixed=100.0,
    options=torch.tensor([[0.0, 100.0], [0.0, 300.0]]),
    routers=torch.tensor([5.0, 5.0]),
)


def gates(execution: list[list[float]] | torch.Tensor) -> Decisions:
    weight = torch.as_tensor(execution)
    return Decisions(weights=torch.stack([1 - weight, weight], dim=2))


def test_scopes_agree_with_hand_arithmetic() -> None:
    decisions = gates([[1.0, 0.5], [0.5, 0.0]])
    assert cost_loss(decisions, 0.5, PRICES).item() == pytest.approx(0.25**2 + 0.25**2)
    by_sample = cost_loss(decisions, 0.5, PRICES, scope="sample").item()
    assert by_sample == pytest.approx((0.25 + 0 + 0 + 0.25) / 2)
    spent = (110 + 100 + 150 + 110 + 50 + 0) / 2
    by_network = cost_loss(decisions, 0.5, PRICES, scope="network").item()
    assert by_network == pytest.approx((spent / 500 - 0.5) ** 2, rel=1e-4)


def test_the_mean_over_units_is_the_sum_divided_by_their_number() -> None:
    decisions = gates(torch.rand(4, 2))
    for scope in ("unit", "sample"):
        total = cost_loss(decisions, 0.3, PRICES, scope=scope)
        mean = cost_loss(decisions, 0.3, PRICES, scope=scope, reduction="mean")
        torch.testing.assert_close(mean, total / 2)


@given(strategies.priced_decisions(), st.floats(0, 1))
def test_scopes_equal_the_literal_formulas(priced: tuple[CostModel, Decisions], target: float) -> None:
    prices, decisions = priced
    execution = decisions.execution()
    by_unit = cost_loss(decisions, target, prices).item()
    assert by_unit == pytest.approx(reference.cost_by_unit(execution, target), rel=1e-4, abs=1e-6)
    by_sample = cost_loss(decisions, target, prices, scope="sample").item()
    assert by_sample == pytest.approx(reference.cost_by_sample(execution, target), rel=1e-4, abs=1e-6)


def test_different_paths_with_the_right_rates_cost_nothing_by_unit_but_something_by_sample() -> None:
    decisions = gates([[1.0, 0.0], [0.0, 1.0]])
    assert cost_loss(decisions, 0.5, PRICES).item() == 0
    assert cost_loss(decisions, 0.5, PRICES, scope="sample").item() == pytest.approx(2 * 0.25)


def test_the_minimiser_by_sample_is_the_target_everywhere() -> None:
    execution = torch.rand(3, 2)
    for _ in range(200):
        execution.requires_grad_()
        (grad,) = torch.autograd.grad(cost_loss(gates(execution), 0.4, PRICES, scope="sample"), execution)
        execution = (execution - grad).detach()
    torch.testing.assert_close(execution, torch.full((3, 2), 0.4))


def test_the_minimiser_by_unit_keeps_the_differences_between_images() -> None:
    start = torch.tensor([[0.9, 0.1], [0.3, 0.5]])
    execution = start.clone()
    for _ in range(100):
        execution.requires_grad_()
        (grad,) = torch.autograd.grad(cost_loss(gates(execution), 0.4, PRICES), execution)
        execution = (execution - grad).detach()
    torch.testing.assert_close(execution.mean(dim=0), torch.full((2,), 0.4))
    torch.testing.assert_close(execution[0] - execution[1], start[0] - start[1])


def test_the_network_scope_only_asks_for_the_right_mean_macs() -> None:
    fraction = (110 + 300) / 500
    for execution in ([[0.0, 1.0]], [[1.0, 2 / 3]], [[0.0, 1.0], [1.0, 2 / 3]]):
        loss = cost_loss(gates(execution), fraction, PRICES, scope="network").item()
        assert loss == pytest.approx(0.0, abs=1e-9)
    assert cost_loss(gates([[1.0, 0.0]]), fraction, PRICES, scope="network").item() > 0.01


def test_the_network_scope_pulls_dear_units_harder_than_cheap_ones() -> None:
    execution = torch.ones(1, 2, requires_grad=True)
    cost_loss(gates(execution), 0.5, PRICES, scope="network").backward()
    assert execution.grad[0, 1].item() == pytest.approx(3 * execution.grad[0, 0].item())
    assert execution.grad[0, 0] > 0


def test_hard_decisions_pass_the_straight_through_gradient() -> None:
    soft = torch.tensor([[0.8, 0.3]], requires_grad=True)
    hard = (soft > 0.5).float() - soft.detach() + soft
    cost_loss(gates(hard), 0.5, PRICES).backward()
    assert soft.grad.tolist() == [[1.0, -1.0]]


@given(strategies.priced_decisions(), strategies.seeds)
def test_the_loss_does_not_see_the_order_of_the_batch(priced: tuple[CostModel, Decisions], seed: int) -> None:
    prices, decisions = priced
    order = torch.randperm(decisions.weights.shape[0], generator=strategies.generator(seed))
    permuted = Decisions(weights=decisions.weights[order])
    for scope in ("unit", "sample", "network"):
        torch.testing.assert_close(
            cost_loss(permuted, 0.5, prices, scope=scope), cost_loss(decisions, 0.5, prices, scope=scope)
        )


def test_the_global_mean_of_one_process_is_the_batch_mean() -> None:
    values = torch.rand(4, 3)
    assert torch.equal(global_mean(values), values.mean(dim=0))
