"""Gates by share of the batch: exact budgets, quantiles that stand for them, gradients, learnt shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.execution.parts import run_part
from sidestep.layers.unit import Unit
from sidestep.methods import METHODS
from sidestep.methods.codinet import CoDiNetConfig
from sidestep.methods.convnet_aig import ConvNetAigConfig
from sidestep.methods.rdi_net import RdiNetConfig
from sidestep.methods.skipnet import SkipNetConfig
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sample
from sidestep.routing.share import ShareConfig, ShareRouter, TopShare, allocated
from tests.doubles import lively_backbone, relational_router


class Margins(Router):
    """Gates whose margins are a (B, L) table, learnt."""

    def __init__(self, margins: Tensor) -> None:
        super().__init__()
        self.margins = nn.Parameter(margins)

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        margin = self.margins[: len(features), unit]
        return torch.stack([torch.zeros_like(margin), margin], dim=1), state


def now(closing: float = 1.0) -> Any:
    return SimpleNamespace(closing=closing)


def share_router(inner: Router, rates: list[float], **values: Any) -> ShareRouter:
    open_units = values.pop("open", ())
    return ShareRouter(inner, len(rates), lambda settings: rates, ShareConfig(**values), open=open_units)


def sampled(router: ShareRouter, unit: int, batch: int, closing: float = 1.0) -> Sample:
    logits, _ = router(unit, torch.zeros(batch, 1), None)
    sampler = router.sampler(now(closing))
    assert isinstance(sampler, TopShare)
    sample = sampler.at(unit)(logits)
    assert sample.weights.shape == (batch, 2)
    return sample


def executed(sample: Sample) -> float:
    """Return how many images execute the unit."""
    return float(sample.weights[:, 1].detach().sum())


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.375, 0.5, 0.9, 1.0])
def test_a_unit_executes_its_share_of_every_batch_even_of_equal_images(rate: float) -> None:
    for margins in (torch.randn(16, 1), torch.zeros(16, 1)):
        sample = sampled(share_router(Margins(margins), [rate]), 0, 16)
        assert executed(sample) == round(16 * rate)
        assert float(sample.weights.detach().sum()) == 16


def test_the_images_that_want_it_most_are_chosen() -> None:
    sample = sampled(share_router(Margins(torch.tensor([[0.3], [2.0], [-1.0], [0.4]])), [0.5]), 0, 4)
    assert sample.chosen is not None and sample.chosen.tolist() == [1, 3]
    assert sample.others is not None and sample.others.tolist() == [0, 2]
    assert sample.weights[:, 1].tolist() == [0, 1, 0, 1]


def test_gates_get_the_gradient_of_ranks_where_they_executed() -> None:
    margins = torch.tensor([[0.3], [2.0], [-1.0], [0.5]])
    router = share_router(Margins(margins), [0.5])
    sample = sampled(router, 0, 4)
    wanted = torch.tensor([1.0, 2.0, 4.0, 8.0])
    (sample.weights[:, 1] * wanted).sum().backward()
    other = margins[:, 0].clone().requires_grad_()
    scaled = (other - other.mean()) / (other.var(correction=0) + 1).sqrt()
    soft = torch.sigmoid(scaled - (scaled[3] + scaled[0]).detach() / 2)
    (soft * wanted * torch.tensor([0.0, 1.0, 0.0, 1.0])).sum().backward()
    torch.testing.assert_close(router.inner.margins.grad[:, 0], other.grad)
    torch.testing.assert_close(sample.relaxed[:, 1], soft)
    assert abs(float(other.grad.sum())) < 1e-6  # type: ignore[union-attr]


def test_evaluation_decides_an_image_alone_by_the_quantile_of_training() -> None:
    generator = torch.Generator().manual_seed(0)
    router = share_router(Margins(torch.zeros(64, 1)), [0.25], memory=0.95)
    for _ in range(300):
        router.inner.margins.data = torch.randn(64, 1, generator=generator) + 3
        sampled(router, 0, 64)
    # A normal distribution around 3 has a quarter above 3.674.
    assert abs(float(router.shift[0, 1]) - 3.674) < 0.1
    router.eval()
    router.inner.margins.data = torch.tensor([[3.5], [3.9]])
    logits, _ = router(0, torch.zeros(2, 1), None)
    assert logits.argmax(dim=1).tolist() == [0, 1]
    one, _ = router(0, torch.zeros(1, 1), None)
    assert torch.equal(one, logits[:1])


def test_quantiles_begin_with_the_first_batch_and_stand_for_all_or_none() -> None:
    router = share_router(Margins(torch.arange(4.0).unsqueeze(1)), [0.5])
    sampled(router, 0, 4, closing=0.0)
    assert bool((router.eval()(0, torch.zeros(4, 1), None)[0].argmax(dim=1) == 1).all())
    router.train()
    sampled(router, 0, 4)
    assert float(router.shift[0, 1]) == 1.5
    nobody = share_router(Margins(torch.ones(4, 1)), [0.0])
    sampled(nobody, 0, 4)
    assert not nobody.eval()(0, torch.zeros(4, 1), None)[0].argmax(dim=1).any()


def test_frozen_gates_choose_alike_and_their_quantile_moves_on() -> None:
    router = share_router(Margins(torch.tensor([[0.0], [1.0], [2.0], [3.0]])), [0.5], memory=0.0)
    sampled(router, 0, 4)
    router.eval()
    router.inner.margins.data += 10
    sample = sampled(router, 0, 4)
    assert sample.chosen is not None and sample.chosen.tolist() == [2, 3]
    assert float(router.shift[0, 1]) == 11.5


@pytest.mark.parametrize(
    ("closing", "share"), [(0.0, 1.0), (0.12, 1.0), (0.5, 0.8), (0.99, 0.65), (1.0, 0.6)]
)
def test_shares_close_in_eighths(closing: float, share: float) -> None:
    router = share_router(Margins(torch.randn(20, 2)), [0.6, 1.0], open=[1])
    assert executed(sampled(router, 0, 20, closing)) == round(20 * share)
    assert sampled(router, 1, 20, closing).chosen is None


def test_units_have_shares_of_their_own() -> None:
    router = share_router(Margins(torch.randn(10, 3)), [0.5] * 3, shares=[0.2, 0.9, 1.0])
    assert [executed(sampled(router, unit, 10)) for unit in range(3)] == [2, 9, 10]
    router.inner.margins.data -= 1000
    assert bool((router.eval()(2, torch.zeros(10, 1), None)[0].argmax(dim=1) == 1).all())
    with pytest.raises(RecipeError, match="must name every unit once, got 1 for 2 units"):
        share_router(Margins(torch.zeros(1, 2)), [0.5] * 2, shares=[0.2])


def test_learnt_shares_follow_what_units_are_worth() -> None:
    router = share_router(Margins(torch.randn(10, 3)), [0.5] * 3, learn=True, open=[2])
    for _ in range(3):
        loss = sum(
            (sampled(router, unit, 10, closing=0.0).weights[:, 1] * worth).mean()
            for unit, worth in enumerate((1.0, 3.0))
        )
        assert isinstance(loss, Tensor)
        loss.backward()
    torch.testing.assert_close(router.worth, torch.tensor([1.0, 3.0, 0.0]))
    assert router.shares(now(0.0), closed=0.0) == [0.5, 0.5, 1.0]
    torch.testing.assert_close(torch.tensor(router.shares(now())), torch.tensor([0.25, 0.75, 1.0]))
    router.worth.fill_(1.0)
    torch.testing.assert_close(router.learnt, torch.tensor([0.25, 0.75, 1.0]))


def test_shares_cannot_be_learnt_without_a_phase_for_it() -> None:
    router = share_router(Margins(torch.zeros(4, 1)), [0.5], learn=True)
    with pytest.raises(RecipeError, match="needs a phase in which all units run"):
        router.sampler(now())


def test_allocated_shares_have_the_mean_and_the_bounds() -> None:
    shares = allocated(torch.tensor([0.001, 1.0, 2.0, 50.0]), 0.5, 0.1)
    torch.testing.assert_close(shares.mean(), torch.tensor(0.5))
    assert float(shares.min()) == pytest.approx(0.1) and float(shares.max()) == 1.0


class Doubling(Unit):
    """A branch without statistics, so that parts and the whole compute alike."""

    def __init__(self) -> None:
        super().__init__(in_channels=3, stage=0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.keeps_input = True

    def run(self, option: int, x: Tensor) -> Tensor:
        return F.silu(x + self.conv(x)) if option else x


def test_a_network_trains_as_the_masked_formula_does() -> None:
    torch.manual_seed(0)
    network = RoutedNetwork(lively_backbone(14))
    # In evaluation mode statistics stand still: those of a part of a batch are not those of all.
    network.router = share_router(relational_router(network.backbone), [0.5] * 6)
    network.router.train()
    for norm in network.router.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.eval()
    for decide in network.router.inner.decide:  # type: ignore[union-attr]
        nn.init.normal_(decide.weight)
    images = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    top = network.router.sampler(now())
    assert isinstance(top, TopShare)

    class Everything:
        """The same weights, every image computed."""

        def at(self, unit: int) -> Any:
            return lambda logits: Sample(*top.at(unit)(logits)[:2])

        def __call__(self, logits: Tensor) -> Sample:
            raise AssertionError

    results = []
    for sampler in (top, Everything()):
        network.zero_grad()
        output = network(images, sampler=sampler)
        output.logits.square().sum().backward()
        results.append([output.logits.detach(), *[p.grad.clone() for p in network.parameters()]])
        assert float(output.decisions.execution().detach().mean()) == 0.5
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_only_chosen_images_are_computed() -> None:
    unit, seen = Doubling(), []
    unit.conv.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    x = torch.randn(6, 3, 4, 4)
    weights = torch.tensor([[1.0, 0.0]] * 6)
    chosen, others = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    weights[chosen] = torch.tensor([0.0, 1.0])
    out = run_part(unit, lambda part, each: unit(part, each), x, weights, chosen, others)
    assert seen == [2]
    assert torch.equal(out[others], x[others])
    torch.testing.assert_close(out[chosen], unit.execute(x[chosen]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RdiNetConfig(closing=0.5), "share and closing have no effect"),
        (lambda: RdiNetConfig(share=ShareConfig(memory=0.5)), "share and closing have no effect"),
        (
            lambda: RdiNetConfig(gate_mode="share", cost_weight=2.0),
            "cost_weight has no effect with gate_mode",
        ),
        (lambda: RdiNetConfig(gate_mode="share", closing=1.5), "closing must be in"),
        (lambda: RdiNetConfig(gate_mode="share", share=ShareConfig(rate=0.5)), "share.rate has no effect"),
        (lambda: CoDiNetConfig(num_units=2, gate_mode="share", cost_weight=1.0), "cost_weight has no effect"),
        (
            lambda: ConvNetAigConfig(gate_mode="share", share=ShareConfig(shares=[0.5])),
            "share.shares has no effect under convnet_aig",
        ),
        (lambda: SkipNetConfig(decisions="share"), "share.rate must say how many images"),
        (lambda: ShareConfig(shares=[0.5], learn=True), "shares must be alone"),
        (lambda: ShareConfig(shares=[1.5]), "shares must be in"),
        (lambda: ShareConfig(least=0.2), "least has no effect where shares are not learnt"),
        (lambda: ShareConfig(memory=1.0), "memory must be in"),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_units_with_three_options_have_no_share() -> None:
    with pytest.raises(RecipeError, match="rdi_net with gate_mode 'share' runs a unit or not"):
        METHODS["rdi_net"].router(lively_backbone(options=3), RdiNetConfig(gate_mode="share"))
