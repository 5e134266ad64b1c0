"""Policy gradients: parity with loops, and estimates that are right on average."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sidestep.losses.policy_gradient import (
    entropy,
    leave_one_out_advantage,
    reinforce_loss,
    self_critical_advantage,
    skipping_return,
)
from sidestep.routing.samplers import bounded_log_probs, log_softmax
from sidestep.types import Decisions, RoutedOutput
from tests import strategies
from tests.reference import policy as reference


def one_hot(executed: Tensor) -> Tensor:
    return F.one_hot(executed.long(), 2).float()


@given(
    st.integers(1, 4), st.integers(1, 5), st.floats(0, 2), st.floats(0, 1), st.booleans(), strategies.seeds
)
def test_returns_and_their_loss_are_those_of_the_loops(
    batch: int, gates: int, alpha: float, gamma: float, scale_task: bool, seed: int
) -> None:
    generator = strategies.generator(seed)
    executed = torch.randint(0, 2, (batch, gates), generator=generator)
    task = torch.rand(batch, generator=generator) * 3
    ours = torch.randn(batch, gates, 2, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()

    returns = skipping_return(one_hot(executed), task, alpha=alpha, gamma=gamma, scale_task=scale_task)
    expected = reference.skipping_returns(executed.tolist(), task.tolist(), alpha, gamma, scale_task)
    torch.testing.assert_close(returns, torch.tensor(expected), rtol=1e-4, atol=1e-5)

    loss = reinforce_loss(log_softmax(ours), one_hot(executed), returns)
    literal = reference.policy_loss(theirs.softmax(dim=2)[..., 1], executed.tolist(), expected)
    torch.testing.assert_close(loss.double(), literal, rtol=1e-4, atol=1e-5)
    loss.backward()
    literal.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_what_a_skipped_gate_is_worth_in_both_programs_of_skipnet() -> None:
    # Of 32 gates one is skipped or none, and the network is as sure in both cases.
    executed = torch.ones(2, 32, dtype=torch.long)
    executed[1, 31] = 0
    task = torch.tensor([1.5, 1.5])
    cifar = skipping_return(one_hot(executed), task, alpha=0.1)[:, 0]
    torch.testing.assert_close(cifar, torch.tensor([-1.5, 0.1 / 32 - 1.5]))
    imagenet = skipping_return(one_hot(executed), task, alpha=0.01, scale_task=True)[:, 0]
    torch.testing.assert_close(imagenet, 0.01 / 32 * torch.tensor([-1.5, 1 - 1.5]))
    # A gate is worth a whole nat there: skipping all, which leaves the 6.9 of a thousand equal classes, pays.
    extremes, task = torch.stack([torch.zeros(32), torch.ones(32)]), torch.tensor([6.9, 0.0])
    for settings, pays in ((dict(alpha=0.01, scale_task=True), True), (dict(alpha=0.1), False)):
        skipping, running = skipping_return(one_hot(extremes), task, **settings)[:, 0]  # type: ignore[arg-type]
        assert (skipping > running) == pays


def test_returns_carry_no_gradient() -> None:
    weights, task = torch.rand(2, 3, 2, requires_grad=True), torch.rand(2, requires_grad=True)
    assert not skipping_return(weights, task, alpha=0.1).requires_grad


def test_the_estimate_is_the_gradient_of_the_expected_reward_on_average() -> None:
    # Two gates and a reward for every path: the expectation has four terms and an exact gradient.
    logits = torch.tensor([[0.3, -0.2], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    rewards = dict(zip(product((0, 1), repeat=2), (1.0, -2.0, 0.5, 3.0), strict=True))
    probabilities = logits.softmax(dim=1)

    def probability(path: tuple[int, ...]) -> Tensor:
        return torch.stack([probabilities[gate, option] for gate, option in enumerate(path)]).prod()

    expectation = sum(probability(path) * reward for path, reward in rewards.items())
    (exact,) = torch.autograd.grad(expectation, logits, retain_graph=True)  # type: ignore[arg-type]

    estimate = torch.zeros_like(logits)
    for path, reward in rewards.items():
        weights = one_hot(torch.tensor([path])).double()
        loss = reinforce_loss(logits.log_softmax(dim=1)[None], weights, torch.tensor([[reward]]))
        (gradient,) = torch.autograd.grad(loss, logits)
        estimate -= probability(path).detach() * gradient
    torch.testing.assert_close(estimate, exact)


def test_leave_one_out_compares_with_the_other_views_or_the_other_images() -> None:
    returns = torch.tensor([[1.0, 4.0], [3.0, 0.0], [5.0, 2.0], [11.0, 2.0]])
    of_batch = torch.tensor([[1 - 19 / 3, 4 - 4 / 3], [3 - 17 / 3, -8 / 3], [0.0, 0.0], [8.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantage(returns), of_batch)
    of_views = torch.tensor([[-2.0, 4.0], [2.0, -4.0], [-6.0, 0.0], [6.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantage(returns, views=2), of_views)
    assert leave_one_out_advantage(returns[:1]).tolist() == returns[:1].tolist()


def test_leave_one_out_has_the_same_gradient_in_the_mean_and_less_variance() -> None:
    # Two views of an image whose gate is drawn for each: four cases, all of them looked at.
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    probabilities, rewards = logits.detach().softmax(dim=0), (5.0, 6.0)
    moments = {}
    for baseline in (False, True):
        mean, square = torch.zeros(2).double(), torch.zeros(2).double()
        for pair in product((0, 1), repeat=2):
            returns = torch.tensor([[rewards[option]] for option in pair]).double()
            advantage = leave_one_out_advantage(returns, views=2) if baseline else returns
            log_probs = logits.log_softmax(dim=0).expand(2, 1, 2)
            loss = reinforce_loss(log_probs, one_hot(torch.tensor(pair).unsqueeze(1)).double(), advantage)
            (gradient,) = torch.autograd.grad(loss, logits)
            weight = probabilities[pair[0]] * probabilities[pair[1]]
            mean, square = mean + weight * gradient, square + weight * gradient.square()
        moments[baseline] = mean, square - mean.square()
    torch.testing.assert_close(moments[True][0], moments[False][0])
    assert bool((moments[True][1] < 0.1 * moments[False][1]).all())


def output(right: list[bool], executed: list[list[int]]) -> RoutedOutput:
    logits = one_hot(torch.tensor(right))
    return RoutedOutput(logits=logits, decisions=Decisions(weights=one_hot(torch.tensor(executed))))


@pytest.mark.parametrize("penalty", [-1.0, -5.0])
def test_the_advantage_is_the_reward_over_that_of_the_most_probable_path(penalty: float) -> None:
    drawn = output([True, True, False], [[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    greedy = output([True, False, True], [[1, 1, 0], [1, 1, 1], [0, 0, 1]])
    labels = torch.tensor([1, 1, 1])
    actual = self_critical_advantage(drawn, greedy, labels, penalty=penalty)
    pairs = [
        ((True, [1, 0, 0]), (True, [1, 1, 0])),
        ((True, [1, 1, 1]), (False, [1, 1, 1])),
        ((False, [0, 0, 0]), (True, [0, 0, 1])),
    ]
    expected = [
        reference.blockdrop_reward(*one, penalty) - reference.blockdrop_reward(*other, penalty)
        for one, other in pairs
    ]
    torch.testing.assert_close(actual, torch.tensor(expected))


@given(st.floats(-8, 8), st.floats(0.5, 1))
def test_bounded_probabilities_leave_room_for_both_decisions(logit: float, alpha: float) -> None:
    probabilities = bounded_log_probs(torch.tensor([0.0, logit]), alpha).exp()
    assert probabilities[1].item() == pytest.approx(reference.bounded(logit, alpha), abs=1e-5)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert 1 - alpha - 1e-6 <= probabilities.min() <= probabilities.max() <= alpha + 1e-6


def test_forced_decisions_stay_forced() -> None:
    assert bounded_log_probs(torch.tensor([-torch.inf, 0.0]), 0.8).exp().tolist() == [0.0, 1.0]


def test_entropy_is_largest_for_equal_chances() -> None:
    log_probs = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    values = entropy(log_probs)
    assert values[0].item() == pytest.approx(0.6931, abs=1e-4)
    assert values[1].item() == pytest.approx(0.3251, abs=1e-4)
