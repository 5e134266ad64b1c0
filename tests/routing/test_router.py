from __future__ import annotations

import pytest
import torch

from sidestep.routing.router import ConstantRouter, Router
from sidestep.routing.samplers import Categorical, GumbelSoftmax, Sampler, argmax
from tests.doubles import noise

SAMPLERS = {
    "argmax": argmax,
    "gumbel": GumbelSoftmax(noise=noise()),
    "hard gumbel": GumbelSoftmax(noise=noise(), hard=True),
    "quiet gumbel": GumbelSoftmax(noise=noise(), noise_scale=0.0),
    "categorical": Categorical(noise=noise()),
    "categorical per batch": Categorical(noise=noise(), per="batch"),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_rates_zero_and_one_are_obeyed_by_every_sampler(sampler: Sampler) -> None:
    router = ConstantRouter.keep([0.0, 1.0])
    features = torch.zeros(200, 4, 2, 2)
    for unit, expected in ((0, [1.0, 0.0]), (1, [0.0, 1.0])):
        logits, _ = router(unit, features, router.begin(features))
        sample = sampler(logits)
        assert torch.equal(sample.weights, torch.tensor(expected).expand(200, 2))
        assert torch.equal(sample.relaxed, torch.tensor(expected).expand(200, 2))


def test_rates_between_are_the_probability_of_executing() -> None:
    router = ConstantRouter.keep([0.3, 0.8])
    features = torch.zeros(5, 4, 2, 2)
    for unit, rate in enumerate([0.3, 0.8]):
        logits, _ = router(unit, features, None)
        torch.testing.assert_close(logits.softmax(dim=1)[:, 1], torch.full((5,), rate))


def test_a_rate_of_one_half_is_a_tie_that_argmax_skips() -> None:
    logits, _ = ConstantRouter.keep([0.5])(0, torch.zeros(2, 4, 2, 2), None)
    assert argmax(logits).weights.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_whole_number_rates_are_accepted() -> None:
    logits, _ = ConstantRouter.keep([1, 0])(0, torch.zeros(1, 4, 2, 2), None)
    assert argmax(logits).weights.tolist() == [[0.0, 1.0]]


def test_a_constant_router_has_nothing_to_learn_and_nothing_to_save() -> None:
    router = ConstantRouter.keep([0.5])
    assert list(router.parameters()) == []
    assert router.state_dict() == {}


def test_a_router_begins_without_state_unless_it_says_otherwise() -> None:
    assert Router().begin(torch.zeros(1, 3, 2, 2)) is None
    with pytest.raises(NotImplementedError):
        Router()(0, torch.zeros(1, 3, 2, 2), None)
