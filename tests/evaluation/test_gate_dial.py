"""Biases that meet budgets: near them, never above, for every kind of router; what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.evaluation.budget_points import BudgetPoint, depth_sentence
from sidestep.evaluation.gate_dial import GateDial, GateSurvey, Logits, spreads
from sidestep.evaluation.report import evaluate_network
from sidestep.methods import METHODS
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.dial import DialledRouter
from sidestep.routing.router import ConstantRouter, Router
from sidestep.runs.gate_budgets import point_of
from sidestep.types import Batch, CostModel
from tests.doubles import lively_backbone

SIZE = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "rdi_net": {},
    "convnet_aig": {},
    "codinet": {"num_units": 3.0},
    "skipnet": {},
    "blockdrop": {"policy_depth": 8},
}


class Counted:
    """A network on images, and how often it was run."""

    def __init__(self, router: Router, cost: CostModel | None = None) -> None:
        torch.manual_seed(3)
        self.network = RoutedNetwork(self.backbone(), router).eval()
        self.router = router
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(300, 3, SIZE, SIZE, generator=generator)
        self.batches = [Batch(images=images, labels=torch.arange(300) % 10)]
        self.cost = cost or measure_cost(self.network, (SIZE, SIZE))
        self.runs = 0

    @staticmethod
    def backbone() -> Any:
        torch.manual_seed(5)
        return lively_backbone(14)

    def __call__(self, biases: Sequence[float], asked: float) -> GateSurvey:
        self.runs += 1
        self.network.router = DialledRouter(self.router, biases)
        logits = Logits()
        report = evaluate_network(self.network, self.batches, self.cost, num_classes=10, per_image=logits)
        return GateSurvey(point=point_of(report, self.cost, asked), logits=logits.all())


def measured(method: str) -> Counted:
    torch.manual_seed(1)
    router = METHODS[method].router(Counted.backbone(), METHODS[method].settings(**SETTINGS[method]))
    assert router is not None
    # Gates that nobody has trained say nearly the same of all images.
    with torch.no_grad():
        for name, parameter in router.named_parameters():
            if "decide" in name or "fc" in name:
                parameter.normal_()
    return Counted(router.eval())


@pytest.mark.parametrize(
    ("method", "per_unit"), [*((method, False) for method in SETTINGS), ("convnet_aig", True)]
)
def test_costs_are_just_below_their_budgets_and_rise_with_them(method: str, per_unit: bool) -> None:
    measure = measured(method)
    dial = GateDial(measure, measure.cost, per_unit=per_unit)
    budgets = dial.evenly(5)
    points = [dial.meet(budget) for budget in budgets]
    costs = [point.macs for point in points]
    assert costs == sorted(costs)
    assert all(cost <= budget * (1 + 1e-6) for cost, budget in zip(costs, budgets, strict=True))
    assert costs == pytest.approx(budgets, rel=0.02)
    assert (costs[0], costs[-1]) == pytest.approx((dial.least, dial.most))
    assert measure.runs <= 30
    for point in points:
        # What is told is what these biases do.
        assert measure(dial.biases(point.asked), 0.0).point.macs == pytest.approx(point.macs)


def test_a_cost_that_does_not_follow_the_bias_for_a_while_is_met_all_the_same() -> None:
    """Where gates answer to what earlier ones skipped, predictions may not leave a plateau of the cost."""
    margins = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double() * 0.3
    prices = CostModel(fixed=1.0, options=torch.tensor([[0.0, 99.0]]), routers=torch.zeros(1), unit="MACs")

    def measure(biases: Sequence[float], asked: float) -> GateSurvey:
        bias = float(biases[0])
        # Between -0.1 and -2 images are executed a little more often with every step down.
        turned = bias if bias > -0.1 else -0.1 - 0.01 * (bias + 0.1) if bias > -2 else bias + 1.9
        half = (margins + turned) / 2
        macs = 1 + 99 * float((half > 0).double().mean())
        point = BudgetPoint(asked=asked, accuracy=0.5, macs=macs, ms=None, image_bits=0.0, class_bits=0.0)
        return GateSurvey(point=point, logits=torch.stack((-half, half), dim=1).unsqueeze(1))

    dial = GateDial(measure, prices)
    for budget in (10.0, 20.0, 30.0, 45.0):
        assert 0.98 * budget <= dial.meet(budget).macs <= budget


def test_a_policy_before_the_network_takes_one_run_for_a_budget() -> None:
    measure = measured("blockdrop")
    dial = GateDial(measure, measure.cost)
    assert measure.runs == 1
    for count, budget in enumerate(dial.evenly(5)[1:-1], 2):
        dial.meet(budget)
        assert measure.runs == count


def test_budgets_in_milliseconds_are_those_of_a_latency_book() -> None:
    measure = measured("convnet_aig")
    cost = measure.cost
    # Blocks that all take a millisecond, whatever their MACs.
    prices = CostModel(
        fixed=1.0, options=(cost.options > 0).float(), routers=torch.zeros(len(cost.options)), unit="ms"
    )

    def timed(biases: Sequence[float], asked: float) -> GateSurvey:
        survey = measure(biases, asked)
        executed = measure.network(measure.batches[0].images).decisions.weights
        ms = 1 + float((executed * prices.options).sum(dim=(1, 2)).mean())
        return GateSurvey(point=replace(survey.point, ms=ms), logits=survey.logits)

    dial = GateDial(timed, prices)
    found = dial.meet((dial.least + dial.most) / 2)
    assert found.ms == pytest.approx((dial.least + dial.most) / 2, rel=0.02)


def test_a_budget_below_all_is_refused_and_one_above_executes_all() -> None:
    measure = measured("rdi_net")
    dial = GateDial(measure, measure.cost)
    with pytest.raises(RecipeError, match="with every block skipped that can be"):
        dial.meet(0.5 * dial.least)
    assert dial.meet(2 * dial.most).macs == pytest.approx(dial.most)


@pytest.mark.parametrize("rates", [[1.0] * 6, [0.0, 1.0] * 3])
def test_paths_that_are_fixed_have_no_dial(rates: list[float]) -> None:
    measure = Counted(ConstantRouter.keep(rates))
    with pytest.raises(RecipeError, match="every unit is decided for good"):
        GateDial(measure, measure.cost)


def test_gates_that_say_the_same_of_all_images_move_as_a_whole() -> None:
    class Same(Router):
        def forward(self, unit: int, features: Any, state: Any) -> tuple[Any, Any]:
            return features.new_tensor([0.0, unit - 2.5]).expand(features.shape[0], 2), state

    measure = Counted(Same())
    dial = GateDial(measure, measure.cost)
    middle = (dial.least + dial.most) / 2
    found = dial.meet(middle)
    # Whole blocks alone: what is below the budget may be far below.
    assert found.macs <= middle and found.image_bits == 0
    assert found.macs > middle - float(measure.cost.options.max())
    assert measure.runs < 16


def test_spreads_are_relative_and_leave_out_units_without_a_gate() -> None:
    logits = torch.zeros(4, 4, 2)
    logits[:, 0, 1] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    logits[:, 1, 1] = torch.tensor([3.0, 3.0, 9.0, 9.0])
    logits[:, 3, 0] = -torch.inf
    # Deviations 1, 3 and 0, whose mean is 4 / 3; the last one has no gate.
    assert spreads(logits) == pytest.approx([0.75, 2.25, 0.01, 1.0])
    assert spreads(torch.zeros(4, 2, 2)) == [1.0, 1.0]


def test_few_bits_at_all_budgets_are_a_dial_over_depth() -> None:
    said = depth_sentence([0.0, 0.9, 0.4], [0.0, 0.25, 0.1])
    assert said is not None and "at most 0.90 bits about an image and 0.25 about its class" in said
    assert depth_sentence([0.0, 1.5], [0.0, 0.2]) is None
    assert depth_sentence([], []) is None
