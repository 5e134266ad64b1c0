"""Gates that stay alive: terms and samplers that methods share, and which settings are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.losses.batch_shaping import batch_shaping_loss
from sidestep.losses.budget import cost_loss
from sidestep.losses.information import conditional_entropy, marginal_gap, variance_gap
from sidestep.losses.policy_gradient import leave_one_out_advantage, reinforce_loss, skipping_return
from sidestep.methods import METHODS
from sidestep.methods.alive import AliveConfig, alive_terms
from sidestep.methods.codinet import CoDiNetConfig
from sidestep.methods.convnet_aig import ConvNetAigConfig
from sidestep.methods.rdi_net import RdiNetConfig
from sidestep.methods.skipnet import SkipNetConfig
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import BudgetsConfig
from sidestep.routing.samplers import Categorical, GumbelSoftmax
from sidestep.types import Batch, RoutedOutput
from tests.doubles import lively_backbone, noise

ALL = {"shaping": 0.5, "complexity": 0.25, "marginal": 0.2, "conditional": -0.1, "variance": 0.3}


def terms_by_hand(logits: Tensor) -> dict[str, Tensor]:
    """Return the terms of (B, L, 2) logits with the weights ALL."""
    m = logits[..., 1] - logits[..., 0]
    losses = {
        "shaping": batch_shaping_loss(m, (0.6, 0.4)),
        "complexity": torch.sigmoid(m).mean(dim=0),
        "marginal": marginal_gap(logits),
        "conditional": conditional_entropy(logits),
        "variance": variance_gap(m),
    }
    return {name: ALL[name] * loss.sum() for name, loss in losses.items()}


def test_terms_are_weighted_sums_over_gates_and_those_without_weight_are_left_out() -> None:
    logits = torch.randn(16, 3, 2)
    assert alive_terms(logits, AliveConfig()) == {}
    assert alive_terms(None, AliveConfig(**ALL)) == {}
    found, expected = alive_terms(logits, AliveConfig(**ALL)), terms_by_hand(logits)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert alive_terms(logits, AliveConfig(variance=1.0)).keys() == {"variance"}


def test_a_unit_that_cannot_be_skipped_adds_nothing_and_has_no_gradient() -> None:
    free = torch.randn(16, 2, 2)
    forced = torch.tensor([-torch.inf, 0.0]).expand(16, 1, 2)
    logits = torch.cat([free[:, :1], forced, free[:, 1:]], dim=1).requires_grad_()
    found = alive_terms(logits, AliveConfig(**ALL))
    for name, value in terms_by_hand(free).items():
        torch.testing.assert_close(found[name], value)
    torch.stack(list(found.values())).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    assert logits.grad[:, 1].abs().sum() == 0 and bool((logits.grad[:, 0] != 0).any())


def test_of_three_options_all_but_the_cheapest_execute() -> None:
    logits = torch.randn(16, 2, 3)
    found = alive_terms(logits, AliveConfig(complexity=1.0))["complexity"]
    torch.testing.assert_close(found, logits.softmax(dim=2)[..., 1:].sum(dim=2).mean(dim=0).sum())


SETTINGS: dict[str, dict[str, Any]] = {
    "rdi_net": {"srm": {"alpha": 0}},
    "convnet_aig": {"schedule": [1.0, 0.5, 0.5]},
    "codinet": {"num_units": 2.0},
    "skipnet": {"sharpness": 2.0},
}


def forward(name: str, **settings: Any) -> tuple[RoutedOutput, dict[str, Tensor], Any]:
    """Return a method's output in training, the terms of its loss, and its settings."""
    from sidestep.runs.recipe import method_settings

    torch.manual_seed(0)
    method, chosen = METHODS[name], method_settings(name, SETTINGS[name] | settings, "test")
    backbone = lively_backbone(mix="branch")
    network = RoutedNetwork(backbone, method.router(backbone, chosen)).train()
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    output = network(images, sampler=method.sampler(chosen, noise()))
    cost = measure_cost(network, (16, 16))
    return output, method.losses(output, Batch(images=images, labels=labels), cost, chosen), cost


@pytest.mark.parametrize("name", SETTINGS)
def test_every_gate_based_method_has_the_terms_of_its_logits(name: str) -> None:
    _, without, _ = forward(name)
    output, terms, _ = forward(name, alive=ALL)
    assert terms.keys() == without.keys() | ALL.keys()
    assert output.decisions.logits is not None
    sharp = 2.0 if name == "skipnet" else 1.0
    for term, value in alive_terms(sharp * output.decisions.logits, AliveConfig(**ALL)).items():
        torch.testing.assert_close(terms[term], value)


@pytest.mark.parametrize("name", ["rdi_net", "convnet_aig"])
def test_rates_of_units_and_a_target_of_the_network_go_together(name: str) -> None:
    schedule = [1.0, 0.5, 0.25]
    output, terms, cost = forward(
        name, schedule=schedule, network_target=0.7, network_weight=20.0, cost_weight=3.0
    )
    rates = output.decisions.execution().detach().mean(dim=0)
    distance = (rates - torch.tensor(schedule)).square()
    # The sum over units of RDI-Net's equation 15, the mean of ConvNet-AIG's.
    expected = 3 * (distance.sum() if name == "rdi_net" else distance.mean())
    torch.testing.assert_close(terms["cost"].detach(), expected)
    torch.testing.assert_close(
        terms["network_cost"], 20 * cost_loss(output.decisions, 0.7, cost, scope="network")
    )


def test_methods_hand_exploration_and_draws_to_their_samplers() -> None:
    alive = AliveConfig(explore=0.3, draws=5)
    for name, settings in {
        "rdi_net": RdiNetConfig(gate_mode="hard", alive=alive),
        "convnet_aig": ConvNetAigConfig(alive=alive),
        "codinet": CoDiNetConfig(num_units=2, gate_mode="hard", alive=alive),
    }.items():
        sampler = METHODS[name].sampler(settings, noise())
        assert isinstance(sampler, GumbelSoftmax) and (sampler.explore, sampler.draws) == (0.3, 5)


def test_skipnets_policy_explores_and_its_gradient_knows() -> None:
    settings = SkipNetConfig(decisions="sampled", policy_weight=1.0, alive=AliveConfig(explore=0.5))
    sampler = METHODS["skipnet"].sampler(settings, noise())
    assert isinstance(sampler, Categorical)
    probabilities = sampler.log_probs(torch.tensor([[0.0, 100.0]])).exp()
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75]]))
    _, sure, _ = forward("skipnet", decisions="sampled", policy_weight=1.0, alive={"explore": 0.9})
    _, plain, _ = forward("skipnet", decisions="sampled", policy_weight=1.0)
    assert not torch.allclose(sure["policy"], plain["policy"])


def test_skipnets_returns_are_compared_with_those_of_others() -> None:
    sampled = {"decisions": "sampled", "policy_weight": 1.0}
    output, terms, _ = forward("skipnet", baseline="others", **sampled)
    logits, weights = output.decisions.logits, output.decisions.weights
    assert logits is not None
    task = F.cross_entropy(output.logits, torch.arange(16) % 10, reduction="none")
    advantage = leave_one_out_advantage(skipping_return(weights[:, 1:], task, alpha=0.1))
    expected = reinforce_loss((2.0 * logits[:, 1:]).log_softmax(dim=2), weights[:, 1:], advantage)
    torch.testing.assert_close(terms["policy"], expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AliveConfig(shaping=-1), "shaping must be at least 0, got -1"),
        (lambda: AliveConfig(variance=-1), "variance must be at least 0"),
        (lambda: AliveConfig(prior=(0.6, 0.0)), r"prior must be above 0, got \[0.6, 0.0\]"),
        (lambda: AliveConfig(explore=1), r"explore must be in \[0, 1\), got 1"),
        (lambda: AliveConfig(draws=0), "draws must be at least 1, got 0"),
        (
            lambda: RdiNetConfig(gate_mode="share", alive=AliveConfig(marginal=1)),
            "alive has no effect on gates that decide by share",
        ),
        (lambda: RdiNetConfig(alive=AliveConfig(draws=4)), "alive.draws belongs to gates that are rounded"),
        (
            lambda: RdiNetConfig(gate_mode="hard", noise_scale=0, alive=AliveConfig(explore=0.1)),
            "alive.explore belongs to decisions that are drawn, got 0.1",
        ),
        (
            lambda: SkipNetConfig(alive=AliveConfig(explore=0.1)),
            "alive.explore belongs to decisions that are",
        ),
        (lambda: RdiNetConfig(network_target=1.5), r"network_target must be in \[0, 1\], got 1.5"),
        (
            lambda: RdiNetConfig(network_target=0.5, network_weight=-1),
            "network_weight must be at least 0, got -1",
        ),
        (lambda: RdiNetConfig(network_target=0.5, cost_scope="network"), "set cost_scope: unit"),
        (lambda: RdiNetConfig(schedule=[2.0]), r"schedule must be in \[0, 1\], got \[2.0\]"),
        (
            lambda: RdiNetConfig(gate_mode="share", network_target=0.5),
            "network_target has no effect with gate_mode 'share'",
        ),
        (
            lambda: ConvNetAigConfig(budgets=BudgetsConfig(low=0.4), network_target=0.5),
            "network_target has no effect with budgets.low",
        ),
        (
            lambda: METHODS["rdi_net"].router(lively_backbone(), RdiNetConfig(schedule=[0.5])),
            "schedule must name every block once, got 1 rates for 3 blocks",
        ),
    ],
)
def test_wrong_settings_get_a_sentence(build: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()
