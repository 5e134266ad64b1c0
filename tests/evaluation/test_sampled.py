"""Evaluation with noise: seeded, whatever the batches are, and hard where images are gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.evaluation.sampled import ImageNoise, Sampled
from sidestep.execution.execution import EXECUTIONS
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import Categorical, GumbelSoftmax, Noise, Sampler
from sidestep.types import Batch
from tests import strategies
from tests.doubles import lively_backbone, shared_network


def hard(noise: Noise) -> Sampler:
    return GumbelSoftmax(noise=noise, hard=True)


def soft(noise: Noise) -> Sampler:
    return GumbelSoftmax(noise=noise)


def batches(sizes: Sequence[int]) -> list[Batch]:
    images = strategies.images(sum(sizes), 0).split(list(sizes))
    return [Batch(images=part, labels=torch.arange(len(part)) % 3) for part in images]


def report(
    sampler: Callable[[Noise], Sampler] | None = hard,
    *,
    seed: int = 0,
    sizes: Sequence[int] = (4, 2),
    network: RoutedNetwork | None = None,
    gather: bool = False,
) -> Report:
    network = network or shared_network()
    return evaluate_network(
        network,
        batches(sizes),
        measure_cost(network, (8, 8)),
        num_classes=3,
        sampled=None if sampler is None else Sampled(sampler=sampler, seed=seed),
        execution=EXECUTIONS["gathered" if gather else "masked"],
    )


def constant_network(rates: Sequence[float]) -> RoutedNetwork:
    return RoutedNetwork(lively_backbone(), ConstantRouter.keep(rates)).eval()


@pytest.mark.parametrize("sampler", [hard, soft])
def test_equal_seeds_give_equal_reports_and_others_do_not(sampler: Callable[[Noise], Sampler]) -> None:
    assert report(sampler, seed=3) == report(sampler, seed=3)
    assert report(sampler, seed=3).keep_rates != report(sampler, seed=4).keep_rates


def test_noise_moves_decisions_away_from_the_arg_max() -> None:
    noisy, plain = report(sizes=(64,)), report(None, sizes=(64,))
    assert (noisy.decisions, plain.decisions) == ("sampled", "argmax")
    assert noisy.keep_rates != plain.keep_rates
    assert noisy.num_paths > 1


@pytest.mark.parametrize("sampler", [hard, lambda noise: Categorical(noise=noise)])
@pytest.mark.parametrize("sizes", [(12,), (1, 11), (5, 5, 2)])
def test_what_an_image_draws_does_not_depend_on_the_batches(
    sizes: Sequence[int], sampler: Callable[[Noise], Sampler]
) -> None:
    expected, actual = (report(sampler, sizes=parts) for parts in ((4, 4, 4), sizes))
    assert actual.keep_rates == expected.keep_rates
    assert actual.gflops_std == expected.gflops_std


def test_images_and_units_draw_apart() -> None:
    noise, device = ImageNoise(0), torch.device("cpu")
    noise.begin_batch()
    first = [noise.uniform(3, 2, device) for _ in range(2)]
    noise.begin_batch()
    later = [noise.uniform(3, 2, device) for _ in range(2)]
    drawn = torch.cat([*first, *later]).flatten()
    assert len(drawn.unique()) == len(drawn)


def test_mean_keep_rates_are_the_probabilities_of_the_softmax() -> None:
    rates, count = [0.3, 0.5, 0.8], 2000
    found = report(network=constant_network(rates), sizes=(1500, 500)).keep_rates
    for rate, mean in zip(rates, found, strict=True):
        assert mean == pytest.approx(rate, abs=4 * (rate * (1 - rate) / count) ** 0.5)


def test_gathered_draws_the_decisions_of_masked() -> None:
    masked, gather = (report(sizes=(5, 1), gather=way).as_dict() for way in (False, True))
    assert (masked.pop("execution"), gather.pop("execution")) == ("masked", "gathered")
    assert masked == gather


def test_soft_decisions_mix_outputs_under_masked_execution_and_are_refused_elsewhere() -> None:
    assert all(0.01 < rate < 0.99 for rate in report(soft).keep_rates)
    with pytest.raises(ExecutionError, match="gathered execution needs sampled decisions that are hard"):
        report(soft, gather=True)


def test_forced_decisions_stay_forced() -> None:
    assert report(network=constant_network([1.0, 0.0, 1.0])).keep_rates == [1, 0, 1]
