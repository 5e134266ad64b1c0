"""Gates by share of the batch for all budgets: exact shares, ranks of one budget, quantiles of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import AtBudgets, BudgetRouter, BudgetsConfig
from sidestep.routing.budget_share import BudgetShareRouter, TopShares, levels
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sample
from sidestep.routing.share import ShareConfig, ShareRouter
from tests.doubles import branch_rows, lively_backbone, relational_router
from tests.routing.test_share import Margins, executed, now


class Gates(Margins):
    """Gates whose margins are a table, which no budget modulates."""

    def first_layers(self) -> nn.ModuleList:
        return nn.ModuleList(nn.Identity() for _ in self.margins[0])

    def begin(self, images: Tensor, layers: Any = None) -> None:
        return None


def budget_router(
    inner: Router, num_units: int = 1, *, low: float = 0.4, asked: float = 0.5, **values: Any
) -> Any:
    given = BudgetRouter(inner, BudgetsConfig(low=low), asked=asked, scope="unit")
    return BudgetShareRouter(given, num_units, memory=values.pop("memory", 0.99))


def sampled(router: Any, budgets: list[float], rows: int, closing: float = 1.0) -> Sample:
    at = AtBudgets(router, torch.tensor(budgets))
    logits, _ = at(0, torch.zeros(rows, 1), at.begin(torch.zeros(rows, 1)))
    sampler = at.sampler(now(closing))
    assert isinstance(sampler, TopShares)
    return sampler.at(0)(logits)


@pytest.mark.parametrize("drawn", [0.4, 0.55, 0.83, 1.0])
@pytest.mark.parametrize("closing", [0.5, 1.0])
def test_every_budget_executes_its_share_and_all_steps_execute_as_much(drawn: float, closing: float) -> None:
    for margins in (torch.randn(80, 1), torch.zeros(80, 1)):
        sample = sampled(budget_router(Gates(margins)), [1.0, 0.4, drawn, 1.4 - drawn], 80, closing)
        rows = sample.weights[:, 1].detach().view(4, 20).sum(dim=1).tolist()
        shares = [1 - closing * (1 - b) for b in (1.0, 0.4, drawn, 1.4 - drawn)]
        assert rows == pytest.approx([20 * share for share in shares], abs=0.5)
        assert executed(sample) == 2 * (20 + round(20 * (1 - closing * 0.6)))
        assert sample.chosen is not None and sample.others is not None
        assert sample.chosen.tolist() == sample.weights[:, 1].nonzero().squeeze(1).tolist()
        assert sorted([*sample.chosen.tolist(), *sample.others.tolist()]) == list(range(80))


def test_images_of_one_budget_are_ranked_and_learn_as_if_alone() -> None:
    torch.manual_seed(0)
    margins = torch.randn(32, 1)
    router = budget_router(Gates(margins), low=0.5)
    wanted = torch.randn(32)
    sample = sampled(router, [1.0, 0.5, 0.75, 0.75], 32)
    (sample.weights[:, 1] * wanted).sum().backward()
    for group, share in enumerate([1.0, 0.5, 0.75, 0.75]):
        place = slice(8 * group, 8 * group + 8)
        alone = Margins(margins[place].clone())
        one = ShareRouter(alone, 1, lambda settings, share=share: [share], ShareConfig())
        logits, _ = one(0, torch.zeros(8, 1), None)
        other = one.sampler(now())(logits)
        (other.weights[:, 1] * wanted[place]).sum().backward()
        torch.testing.assert_close(other.weights, sample.weights[place])
        torch.testing.assert_close(other.relaxed, sample.relaxed[place])
        torch.testing.assert_close(router.inner.inner.margins.grad[place], alone.margins.grad)


def test_an_image_is_decided_alone_by_the_quantile_of_its_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    router = budget_router(Gates(torch.zeros(256, 1)), memory=0.95)
    for _ in range(600):
        router.inner.inner.margins.data = torch.randn(256, 1, generator=generator) + 3
        drawn = 0.4 + 0.6 * float(torch.rand(1, generator=generator))
        sampled(router, [1.0, 0.4, drawn, 1.4 - drawn], 256)
    fresh = torch.randn(20000, 1, generator=generator) + 3
    for budget in (0.4, 0.5, 0.62, 0.8, 0.95):
        for deciding in (router.at(budget).eval(), budget_router(Gates(fresh), asked=budget).eval()):
            gates = deciding.inner if isinstance(deciding, ShareRouter) else deciding.inner.inner
            gates.margins = nn.Parameter(fresh)
            if isinstance(deciding, BudgetShareRouter):
                deciding.quantiles.copy_(router.quantiles)
            images = torch.zeros(20000, 1)
            logits, _ = deciding(0, images, deciding.begin(images))
            assert float(logits.argmax(dim=1).float().mean()) == pytest.approx(budget, abs=0.015)


def test_the_full_budget_executes_everything() -> None:
    router = budget_router(Gates(torch.full((4, 1), -1000.0)), asked=1.0).eval()
    for deciding in (router, router.at(1.0)):
        logits, _ = deciding(0, torch.zeros(4, 1), deciding.begin(torch.zeros(4, 1)))
        assert logits.argmax(dim=1).tolist() == [1, 1, 1, 1]


def test_levels_lie_between_margins_that_are_executed_and_others() -> None:
    ordered = torch.tensor([[5.0, 3.0, 1.0, -1.0], [0.0, -4.0, -8.0, -12.0]])
    found = levels(ordered, torch.tensor([0.0, 0.25, 0.5, 0.625, 1.0]))
    assert found.tolist() == [[5.0, 4.0, 2.0, 1.0, -1.0], [0.0, -2.0, -6.0, -8.0, -12.0]]


def test_quantiles_between_the_budgets_of_a_step_lie_between_theirs() -> None:
    """Where the budget moves all margins by three times itself, so does every quantile."""
    router = budget_router(Gates(torch.zeros(1, 1)))
    budgets, base = torch.tensor([1.0, 0.4, 0.9, 0.5]), torch.randn(401)
    router.note_quantiles(0, base + 3 * budgets.unsqueeze(1), budgets)
    shares = torch.linspace(0.4, 1, 17)
    expected = levels(base.sort(descending=True).values.unsqueeze(0), shares)[0] + 3 * shares
    torch.testing.assert_close(router.quantiles[0], expected, rtol=1e-4, atol=1e-4)


def test_only_what_is_chosen_is_computed_in_training() -> None:
    torch.manual_seed(0)
    backbone = lively_backbone(14)
    network = RoutedNetwork(backbone, budget_router(relational_router(backbone), 6, low=0.5))
    at = AtBudgets(network.router, torch.tensor([1.0, 0.5, 0.75, 0.75]))  # type: ignore[arg-type]
    with branch_rows(backbone) as rows:
        output = network(torch.randn(32, 3, 8, 8), sampler=at.sampler(now()), router=at)
    assert rows == [24] * 6
    output.logits.square().sum().backward()
    given = network.router.inner.modulation.grad
    assert given is not None and bool((given.abs().sum(dim=1) > 0)[[0, 2, 4]].all())
