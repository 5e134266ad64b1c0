"""Routers that are given the budget: what it changes, one budget for good, budgets of steps, settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError, RecipeError
from sidestep.methods import METHODS
from sidestep.methods.codinet import CoDiNetConfig
from sidestep.methods.convnet_aig import ConvNetAigConfig
from sidestep.methods.rdi_net import RdiNetConfig
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import (
    AtBudgets,
    BudgetedRouter,
    BudgetRouter,
    BudgetsConfig,
    budgets_of_step,
    nearness,
)
from sidestep.routing.share import ShareConfig
from tests.doubles import enliven, lively_backbone, noise

LOW = BudgetsConfig(low=0.4)
SETTINGS: dict[str, Any] = {
    "rdi_net": RdiNetConfig(budgets=LOW),
    "convnet_aig": ConvNetAigConfig(budgets=LOW),
    "codinet": CoDiNetConfig(num_units=4, budgets=LOW),
    "rdi_net by share": RdiNetConfig(budgets=LOW, target=0.6, gate_mode="share"),
}


def lively(name: str) -> RoutedNetwork:
    """Return a network in evaluation mode whose routers do something else with every budget."""
    torch.manual_seed(0)
    backbone = lively_backbone(14)
    router = METHODS[name.split()[0]].router(backbone, SETTINGS[name])
    enliven(router)
    for module in router.modules():
        if isinstance(module, BudgetRouter):
            nn.init.normal_(module.modulation, std=0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    if hasattr(router, "quantiles"):
        router.quantiles.normal_()
    return RoutedNetwork(backbone, router).eval()


def logits_of(network: RoutedNetwork, images: Tensor, router: Any = None) -> Tensor:
    with torch.no_grad():
        logits = network(images, router=router).decisions.logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", SETTINGS)
def test_a_router_at_one_budget_is_an_ordinary_one_that_decides_alike(name: str) -> None:
    network, images = lively(name), torch.randn(6, 3, 8, 8)
    given = network.router
    assert isinstance(given, BudgetedRouter)
    seen = []
    for budget in (0.4, 0.7, 0.93):
        given.asked = budget
        for inside in given.modules():
            if isinstance(inside, BudgetedRouter):
                inside.asked = budget
        seen.append(logits_of(network, images))
        one = given.at(budget)
        assert not any(isinstance(module, BudgetedRouter) for module in one.modules())
        torch.testing.assert_close(logits_of(network, images, one), seen[-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1], atol=0.05) and not torch.allclose(seen[1], seen[2], atol=0.05)


def test_images_of_several_budgets_are_decided_as_each_alone() -> None:
    network, images = lively("rdi_net"), torch.randn(3, 3, 8, 8)
    given = network.router
    assert isinstance(given, BudgetedRouter)
    together = logits_of(network, torch.cat([images, images]), AtBudgets(given, torch.tensor([0.9, 0.5])))
    alone = [logits_of(network, images, AtBudgets(given, torch.tensor([b]))) for b in (0.9, 0.5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_scale_and_shift_modulate_the_features_of_a_gate() -> None:
    network, images = lively("convnet_aig"), torch.randn(4, 3, 8, 8)
    given = network.router
    assert isinstance(given, BudgetRouter)
    budget = torch.tensor([0.55])
    first, state = network.backbone.stem(images), given.begin_at(images, budget)
    logits, _ = given(0, first, state)
    hidden = given.inner.inner[0](first.mean(dim=(2, 3)))
    # A quarter of the way from the first to the last of five knots.
    scale, shift = given.modulation[1, :16], given.modulation[1, 16:32]
    expected = given.inner.decide[0](torch.relu(hidden * (1 + scale) + shift))
    torch.testing.assert_close(logits, expected)


def test_a_budget_costs_no_macs() -> None:
    network = lively("rdi_net by share")
    assert isinstance(network.router, BudgetedRouter)
    given = measure_cost(network, (8, 8))
    one = measure_cost(RoutedNetwork(network.backbone, network.router.at(0.6)), (8, 8))
    assert torch.equal(given.routers, one.routers) and float(given.routers.sum()) > 0


def test_every_step_has_both_ends_and_two_budgets_that_mirror_each_other() -> None:
    draws, source = [], noise()
    for _ in range(200):
        budgets = budgets_of_step(0.4, source, torch.device("cpu"))
        torch.testing.assert_close(budgets[:2], torch.tensor([1.0, 0.4]))
        assert float(budgets[2] + budgets[3]) == pytest.approx(1.4)
        draws.append(float(budgets[2]))
    assert 0.4 <= min(draws) < 0.42 and 0.98 < max(draws) <= 1


def test_nearness_sums_to_one_and_is_a_line_between_neighbours() -> None:
    budgets = torch.rand(50) * 0.7 + 0.3
    near = nearness(budgets, 0.3, 9)
    torch.testing.assert_close(near.sum(dim=1), torch.ones(50))
    torch.testing.assert_close(near @ torch.linspace(0.3, 1, 9), budgets)
    assert int((near > 1e-5).sum(dim=1).max()) <= 2


def test_a_budget_that_routers_are_not_trained_for_is_refused() -> None:
    router = lively("rdi_net by share").router
    assert isinstance(router, BudgetedRouter)
    for budget in (0.3, 1.01):
        with pytest.raises(ExecutionError, match=rf"trained for, 0.4 to 1, got {budget}"):
            router.at(budget)


def test_a_sweep_has_no_budget_to_vary() -> None:
    for name in ("rdi_net", "convnet_aig"):
        method = METHODS[name]
        assert method.budget(method.settings()) == "target" and method.budget(SETTINGS[name]) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetsConfig(low=1.0), r"low must be in \(0, 1\), got 1.0"),
        (lambda: BudgetsConfig(low=0.4, distillation=2.0), "distillation must be in"),
        (lambda: BudgetsConfig(distillation=0.5), "distillation has no effect for one budget"),
        (lambda: RdiNetConfig(target=0.3, budgets=LOW), "target must be between budgets.low and the full"),
        (
            lambda: RdiNetConfig(gate_mode="share", budgets=LOW, share=ShareConfig(learn=True)),
            "share.learn has no effect beside budgets.low",
        ),
        (
            lambda: RdiNetConfig(gate_mode="share", budgets=LOW, share=ShareConfig(shares=[0.5])),
            "share.shares has no effect beside budgets.low",
        ),
        (
            lambda: ConvNetAigConfig(schedule=[0.5], budgets=LOW),
            "schedule has no effect with budgets.low",
        ),
        (
            lambda: METHODS["codinet"].router(lively_backbone(14), CoDiNetConfig(num_units=1, budgets=LOW)),
            "num_units over the number of blocks must be between",
        ),
        (
            lambda: METHODS["rdi_net"].router(lively_backbone(options=3), RdiNetConfig(budgets=LOW)),
            "rdi_net with budgets runs a unit or not",
        ),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
