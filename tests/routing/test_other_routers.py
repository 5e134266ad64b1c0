"""SkipNet's gates, BlockDrop's policy, and chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.chance import ChanceRouter
from sidestep.routing.feedforward import FeedForwardRouter
from sidestep.routing.policy import LastUnitsRouter, PolicyRouter
from sidestep.routing.recurrent import RecurrentRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Categorical
from tests import strategies
from tests.doubles import enliven, lively_backbone, noise
from tests.reference.macs import CountedMacs

CHANNELS = [16, 16, 32]


def routers() -> dict[str, Router]:
    torch.manual_seed(0)
    policy = CifarResNet(CifarResNetConfig(depth=8, num_classes=3))
    made = {
        "feedforward1": FeedForwardRouter(CHANNELS, deep=True),
        "feedforward2": FeedForwardRouter(CHANNELS, deep=False),
        "recurrent": RecurrentRouter(CHANNELS),
        "policy": PolicyRouter(policy),
        "chance": ChanceRouter([0.5] * 3),
    }
    for router in made.values():
        enliven(router)
    return made


@pytest.mark.parametrize("name", routers())
def test_gathered_equals_masked_and_costs_what_was_counted(name: str) -> None:
    network = RoutedNetwork(lively_backbone(8), routers()[name]).eval()
    cost = measure_cost(network, (16, 16))
    for seed in range(6):
        image = strategies.images(1, seed, size=16)
        with torch.no_grad():
            expected = network(image)
            with CountedMacs() as counted:
                actual = network(image, execution=gathered)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert sum(counted.macs) == cost.per_sample(actual.decisions).item()


@pytest.mark.parametrize("name", ["feedforward1", "feedforward2", "recurrent"])
def test_skipnets_first_unit_has_no_gate(name: str) -> None:
    router = routers()[name].eval()
    logits, _ = router(0, torch.rand(5, 16, 8, 8), router.begin(torch.zeros(5, 3, 8, 8)))
    assert logits.tolist() == [[-torch.inf, 0.0]] * 5


def test_feedforward_gates_cost_what_the_paper_says() -> None:
    backbone = CifarResNet(CifarResNetConfig(depth=8))
    for deep, share in ((True, 0.156), (False, 0.125)):
        cost = measure_cost(RoutedNetwork(backbone, FeedForwardRouter(CHANNELS, deep=deep)), (32, 32))
        assert cost.routers[0] == 0
        assert cost.routers[1].item() / 4_718_592 == pytest.approx(share, abs=0.001)


def test_the_recurrent_gate_is_an_lstm_over_units_with_a_state_per_image() -> None:
    router = RecurrentRouter([2, 2, 3], width=4)
    nn.init.normal_(router.decide.bias)
    state = router.begin(torch.zeros(2, 3, 4, 4))
    maps = [torch.rand(2, c, 4, 4) for c in (2, 2, 3)]
    hidden = cell = torch.zeros(2, 4)
    for unit, features in enumerate(maps):
        logits, state = router(unit, features, state)
        if unit == 0:
            continue
        embedded = router.embed[unit - 1](features.mean(dim=(2, 3)))
        gates = nn.functional.linear(embedded, router.lstm.weight_ih, router.lstm.bias_ih)
        gates = gates + nn.functional.linear(hidden, router.lstm.weight_hh, router.lstm.bias_hh)
        i, f, g, o = gates.chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        torch.testing.assert_close(logits[:, 1:], router.decide(hidden))
        assert logits[:, 0].tolist() == [0.0, 0.0]


def test_the_policy_decides_about_all_units_from_the_image() -> None:
    router = PolicyRouter(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)), shrink=2)
    images = torch.rand(2, 3, 8, 8)
    state = router.begin(images)
    expected = router.network(nn.functional.avg_pool2d(images, 2))
    for unit in range(5):
        logits, state = router(unit, torch.zeros(2, 7, 1, 1), state)
        torch.testing.assert_close(logits, torch.stack([torch.zeros(2), expected[:, unit]], dim=1))


def test_the_curriculum_forces_all_but_the_last_units() -> None:
    policy = PolicyRouter(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)))
    router, images = LastUnitsRouter(policy, num_free=2), torch.rand(64, 3, 4, 4)
    assert not list(router.parameters())
    state, sampler = router.begin(images), Categorical(noise=noise())
    for unit in range(5):
        logits, state = router(unit, images, state)
        if unit < 3:
            assert bool((sampler(logits).weights[:, 1] == 1).all())
        else:
            assert torch.equal(logits, policy(unit, images, policy.begin(images))[0])


def test_chance_keeps_its_rates_and_knows_the_image_again() -> None:
    rates = [0.0, 0.3, 0.8, 1.0]
    router, images = ChanceRouter(rates), strategies.images(4000, 0)
    state = router.begin(images)
    kept = torch.stack([router(unit, images, state)[0].argmax(dim=1) for unit in range(4)], dim=1).float()
    torch.testing.assert_close(kept.mean(dim=0), torch.tensor(rates), atol=0.03, rtol=0)
    correlation = torch.corrcoef(kept[:, 1:3].T)[0, 1]
    assert abs(correlation) < 0.06
    again = router.begin(images.flip(0)).flip(0)
    assert torch.equal(again, state)
    assert not torch.equal(ChanceRouter(rates, seed=1).begin(images), state)


@given(st.floats(1.01, 9))
def test_a_rate_above_one_is_refused(rate: float) -> None:
    with pytest.raises(RecipeError, match="keep rates must be in"):
        ChanceRouter([rate])
