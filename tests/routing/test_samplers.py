from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sidestep.routing.samplers import (
    Categorical,
    GumbelSoftmax,
    Sampler,
    argmax,
    explored_log_probs,
    is_noisy,
    one_hot_argmax,
)
from tests import strategies
from tests.doubles import noise
from tests.reference import sampling as reference

NUM_DRAWS = 20_000


def frequencies(sampler: Sampler, logits: Tensor) -> Tensor:
    return sampler(logits.expand(NUM_DRAWS, -1)).weights.mean(dim=0)


def sampling_error(probabilities: Tensor) -> float:
    return float(4 * (probabilities * (1 - probabilities) / NUM_DRAWS).sqrt().max())


def test_argmax_takes_the_largest_logit_and_a_tie_skips() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    sample = argmax(logits)
    assert sample.weights.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert sample.relaxed is sample.weights


def test_of_equal_options_the_cheapest_wins() -> None:
    assert one_hot_argmax(torch.tensor([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0]])).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(
    strategies.seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(2, 4)
)
def test_gumbel_softmax_equals_the_literal_formula(
    seed: int, temperature: float, noise_scale: float, options: int
) -> None:
    logits = torch.randn(3, options, generator=strategies.generator(seed))
    sampler = GumbelSoftmax(noise=noise(seed), temperature=temperature, noise_scale=noise_scale)
    uniform = torch.rand(3, options, generator=strategies.generator(seed))
    literal = reference.gumbel_softmax(logits, uniform, temperature, noise_scale)
    torch.testing.assert_close(sampler(logits).weights, torch.tensor(literal), rtol=1e-4, atol=1e-5)


def test_soft_weights_are_their_own_relaxation_and_sum_to_one() -> None:
    sample = GumbelSoftmax(noise=noise())(torch.randn(8, 3))
    assert sample.relaxed is sample.weights
    torch.testing.assert_close(sample.weights.sum(dim=1), torch.ones(8))


@pytest.mark.parametrize("options", [2, 3, 5])
def test_hard_weights_are_exactly_one_hot_at_the_largest_relaxed_weight(options: int) -> None:
    sample = GumbelSoftmax(noise=noise(), hard=True)(torch.randn(1000, options))
    assert torch.equal(sample.weights, one_hot_argmax(sample.relaxed))
    assert 0 < sample.weights[:, 1].mean() < 1


def test_straight_through_has_the_gradient_of_the_soft_weights() -> None:
    logits, direction = torch.randn(16, 2), torch.randn(16, 2)
    gradients = []
    for hard in (False, True):
        scores = logits.clone().requires_grad_()
        (GumbelSoftmax(noise=noise(3), hard=hard)(scores).weights * direction).sum().backward()
        gradients.append(scores.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


def test_hard_and_soft_share_the_relaxed_weights_of_equal_noise() -> None:
    logits = torch.randn(16, 2)
    soft, hard = (GumbelSoftmax(noise=noise(3), hard=h)(logits) for h in (False, True))
    assert torch.equal(soft.relaxed, hard.relaxed)


@pytest.mark.parametrize("hard", [False, True])
def test_without_noise_gumbel_softmax_is_the_softmax_of_logits_over_temperature(hard: bool) -> None:
    logits = torch.randn(6, 2)
    sample = GumbelSoftmax(noise=noise(), temperature=0.5, noise_scale=0.0, hard=hard)(logits)
    expected = torch.softmax(logits / 0.5, dim=1)
    torch.testing.assert_close(sample.relaxed, expected)
    torch.testing.assert_close(sample.weights, argmax(logits).weights if hard else expected)


def test_a_low_temperature_makes_soft_weights_nearly_hard() -> None:
    soft = GumbelSoftmax(noise=noise(5), temperature=1e-3)(torch.zeros(100, 2)).weights
    hard = GumbelSoftmax(noise=noise(5), hard=True)(torch.zeros(100, 2)).weights
    torch.testing.assert_close(soft, hard, atol=0.02, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_hard_gumbel_frequencies_are_the_softmax_at_any_temperature(temperature: float) -> None:
    logits = torch.tensor([0.3, -0.5, 1.0])
    expected = torch.softmax(logits, dim=0)
    drawn = frequencies(GumbelSoftmax(noise=noise(1), temperature=temperature, hard=True), logits)
    torch.testing.assert_close(drawn, expected, atol=sampling_error(expected), rtol=0)


@given(st.integers(2, 4), st.floats(0, 1))
def test_explored_probabilities_are_a_mixture_with_equal_ones(options: int, share: float) -> None:
    logits = torch.linspace(-3, 4, options)
    expected = (1 - share) * torch.softmax(logits, dim=0) + share / options
    torch.testing.assert_close(explored_log_probs(logits, share).exp(), expected)


def test_exploration_never_ends_but_for_forced_decisions() -> None:
    sampler = GumbelSoftmax(noise=noise(2), hard=True, explore=0.4)
    drawn = frequencies(sampler, torch.tensor([-50.0, 50.0]))
    assert drawn[0].item() == pytest.approx(0.2, abs=0.015)
    forced = frequencies(sampler, torch.tensor([-torch.inf, 0.0]))
    assert forced.tolist() == [0.0, 1.0]


def gradients(logits: Tensor, draws: int, **settings: float) -> Tensor:
    """Return the (N, K) straight-through gradients of a curved function of hard weights."""
    scores = logits.expand(NUM_DRAWS, -1).clone().requires_grad_()
    sampler = GumbelSoftmax(noise=noise(7), hard=True, draws=draws, **settings)
    worth = torch.tensor([1.0, -2.0, 0.5])[: len(logits)]
    (sampler(scores).weights * worth).sum(dim=1).square().sum().backward()
    assert scores.grad is not None
    return scores.grad


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"noise_scale": 0.5, "temperature": 2.0}])
@pytest.mark.parametrize("options", [2, 3])
def test_the_mean_over_noises_has_the_same_gradient_with_less_variance(
    options: int, settings: dict[str, float]
) -> None:
    logits = torch.tensor([0.3, -0.5, 1.0])[:options]
    one, many = (gradients(logits, draws, **settings) for draws in (1, 16))
    error = 5 * ((one.var(dim=0) + many.var(dim=0)) / NUM_DRAWS).sqrt()
    assert bool(((one.mean(dim=0) - many.mean(dim=0)).abs() < error).all())
    assert bool((many.var(dim=0) < one.var(dim=0)).all())


def test_noises_behind_a_decision_lead_to_it_and_leave_forced_ones_alone() -> None:
    logits = torch.cat([torch.randn(500, 3), torch.tensor([[-torch.inf, 0.0, 0.0]])]).requires_grad_()
    one, two = (GumbelSoftmax(noise=noise(4), hard=True, draws=draws)(logits) for draws in (1, 2))
    torch.testing.assert_close(one.weights, two.weights)
    # Of weights that all have the same largest option, the mean has it too.
    assert torch.equal(one_hot_argmax(two.relaxed), one_hot_argmax(two.weights))
    assert two.relaxed[-1, 0] == 0
    two.weights[:, 1].sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_categorical_frequencies_are_the_softmax() -> None:
    logits = torch.tensor([0.3, -0.5, 1.0])
    expected = torch.softmax(logits, dim=0)
    drawn = frequencies(Categorical(noise=noise(1)), logits)
    torch.testing.assert_close(drawn, expected, atol=sampling_error(expected), rtol=0)


def test_categorical_draws_are_one_hot_and_carry_no_gradient() -> None:
    sample = Categorical(noise=noise())(torch.randn(50, 3, requires_grad=True))
    assert torch.equal(sample.weights.sum(dim=1), torch.ones(50))
    assert set(sample.weights.unique().tolist()) == {0.0, 1.0}
    assert not sample.weights.requires_grad


def test_categorical_per_batch_draws_one_option_for_all_images_and_anew_for_every_batch() -> None:
    sampler = Categorical(noise=noise(2), per="batch")
    batches = [sampler(torch.zeros(8, 2)).weights for _ in range(20)]
    assert all(torch.equal(weights, weights[:1].expand(8, 2)) for weights in batches)
    assert {int(weights[0, 1]) for weights in batches} == {0, 1}


def test_categorical_per_sample_draws_anew_for_every_image() -> None:
    weights = Categorical(noise=noise(2))(torch.zeros(20, 2)).weights
    assert 0 < weights[:, 1].mean() < 1


def test_noise_lies_in_the_unit_interval_and_moves_on() -> None:
    source = noise(4)
    first, second = (source.uniform(100, 2, torch.device("cpu")) for _ in range(2))
    assert 0 <= first.min() < first.max() < 1
    assert not torch.equal(first, second)


@given(st.integers(1, 4), st.integers(1, 4), strategies.seeds)
def test_the_shards_of_several_processes_are_the_draws_of_one(rows: int, world_size: int, seed: int) -> None:
    whole, device = noise(seed), torch.device("cpu")
    shards = [noise(seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2):
        together = torch.cat([shard.uniform(rows, 2, device) for shard in shards])
        assert torch.equal(together, whole.uniform(rows * world_size, 2, device))


@pytest.mark.parametrize(
    "make", [GumbelSoftmax, Categorical, lambda noise: GumbelSoftmax(noise=noise, hard=True)]
)
def test_two_half_batches_on_two_processes_sample_what_one_process_samples(make: type) -> None:
    logits = torch.randn(6, 2)
    whole = make(noise=noise(7))(logits).weights
    halves = [make(noise=noise(7, rank=r, world_size=2))(logits[3 * r : 3 * r + 3]).weights for r in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)


def test_an_option_for_the_whole_batch_is_that_of_all_processes() -> None:
    options = set()
    for seed in range(20):
        rows = [
            Categorical(noise=noise(seed, rank=rank, world_size=2), per="batch")(torch.zeros(3, 2)).weights
            for rank in (0, 1)
        ]
        whole = Categorical(noise=noise(seed), per="batch")(torch.zeros(6, 2)).weights
        assert torch.equal(torch.cat(rows), whole)
        options.add(int(whole[0, 1]))
    assert options == {0, 1}


def test_equal_seeds_sample_equally_and_other_seeds_otherwise() -> None:
    logits = torch.randn(16, 2)
    first, again, other = (GumbelSoftmax(noise=noise(s))(logits).weights for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_precision_logits_are_sampled_in_full_precision() -> None:
    logits = torch.randn(4, 2, dtype=torch.bfloat16)
    for sampler in (GumbelSoftmax(noise=noise()), Categorical(noise=noise())):
        assert sampler(logits).weights.dtype == torch.float32


def test_extreme_draws_stay_finite() -> None:
    class Extreme:
        def uniform(self, rows: int, columns: int, device: torch.device) -> Tensor:
            return torch.tensor([[0.0, 1.0]])

    sample = GumbelSoftmax(noise=Extreme())(torch.zeros(1, 2))
    assert bool(sample.weights.isfinite().all())


def test_samplers_that_draw_are_noisy() -> None:
    assert is_noisy(Categorical(noise=noise()))
    assert is_noisy(GumbelSoftmax(noise=noise(), noise_scale=0.1))
    assert not is_noisy(GumbelSoftmax(noise=noise(), noise_scale=0.0, hard=True))
    assert not is_noisy(argmax)
