"""Gates that see what early exits say: from where on, how it is added, and who cannot hand it to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExportError, RecipeError
from sidestep.execution.execution import cascade, gathered
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.exit_rule import CRITERIA, ExitRule
from sidestep.routing.router import Router
from sidestep.routing.seeing_router import SeeingRouter, certainty_figures
from tests.doubles import attached_network

# Exits are behind the second and the third unit of six.
BEFORE = 2
METHODS: dict[str, dict[str, Any]] = {
    "rdi_net": {},
    "convnet_aig": {"schedule": [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]},
    "codinet": {"num_units": 3.0},
    "skipnet": {},
}


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def seeing_network(method: str = "rdi_net", **settings: Any) -> tuple[RoutedNetwork, SeeingRouter]:
    network = attached_network(method, sees_exits=True, **METHODS[method], **settings)
    (router,) = [part for part in network.modules() if isinstance(part, SeeingRouter)]
    return network, router


def test_figures_are_those_by_which_images_leave() -> None:
    logits = torch.randn(8, 10)
    found = certainty_figures(logits)
    for place, name in enumerate(("confidence", "margin", "entropy")):
        expected = CRITERIA[name].score(logits.double(), torch.ones(8))
        torch.testing.assert_close(found[:, place].double(), expected, atol=1e-6, rtol=1e-5)
    assert certainty_figures(torch.zeros(2, 10))[0].tolist() == pytest.approx([0.1, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gates_start_as_those_inside_and_later_add_what_the_last_exit_says(method: str) -> None:
    network, router = seeing_network(method)
    plain = RoutedNetwork(
        network.backbone, router.inner, exits=list(network.exits), units_before=network.units_before[:-1]
    ).eval()
    before = network(images())
    torch.testing.assert_close(before.decisions.logits, plain(images()).decisions.logits)
    nn.init.normal_(router.weights)
    after = network(images())
    torch.testing.assert_close(after.decisions.logits[:, :BEFORE], before.decisions.logits[:, :BEFORE])
    figures = certainty_figures(after.exit_logits[0])
    added = figures @ router.weights[BEFORE].T
    expected = before.decisions.logits[:, BEFORE] + added
    torch.testing.assert_close(after.decisions.logits[:, BEFORE], expected, atol=1e-4, rtol=1e-4)


def test_units_without_a_gate_are_left_alone() -> None:
    network, router = seeing_network("convnet_aig")
    nn.init.normal_(router.weights)
    assert router.open == {0}
    assert network(images()).decisions.logits[:, 0].isinf().any(dim=1).all()


def test_exits_learn_nothing_from_gates_and_gates_learn_to_see() -> None:
    network, router = seeing_network()
    logits = network.train()(images()).decisions.logits
    logits[:, BEFORE:].square().sum().backward()
    assert all(parameter.grad is None for parameter in network.exits.parameters())
    assert router.weights.grad is not None
    assert bool((router.weights.grad[BEFORE:] != 0).all()) and not router.weights.grad[:BEFORE].any()


@pytest.mark.parametrize("settings", [{}, {"gate_mode": "share"}])
def test_all_executions_decide_alike_and_images_that_leave_take_their_figures(
    settings: dict[str, Any],
) -> None:
    network, router = seeing_network(**settings)
    nn.init.normal_(router.weights, std=3)
    exit_logits = network(images()).exit_logits
    certain = exit_logits[0].detach().softmax(dim=1).amax(dim=1)
    rule = ExitRule(thresholds=[float(certain.median()), 1.0])
    with torch.no_grad():
        masked = network(images(), rule=rule)
        for execution in (gathered, cascade):
            other = network(images(), rule=rule, execution=execution)
            torch.testing.assert_close(other.decisions.weights, masked.decisions.weights)
            torch.testing.assert_close(other.logits, masked.logits, atol=1e-4, rtol=1e-4)
    assert 0 < int(masked.decisions.exits[:, 0].sum()) < 16


def test_gates_that_see_are_priced_and_cannot_be_exported_or_become_members() -> None:
    network, _ = seeing_network(gate_mode="share")
    cost = measure_cost(network, (16, 16))
    assert cost.routers[0] > measure_cost(attached_network(), (16, 16)).routers[0]
    card = PlanCard(
        input_size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, class_names=tuple("abcdefghij"), cost=cost
    )
    with pytest.raises(ExportError, match=r"train with method\.sees_exits false"):
        export_plan(network, card)
    with pytest.raises(RecipeError, match="members must decide without their early exits"):
        CascadeNetwork([network, network], [nn.Identity(), nn.Identity()])


def test_other_routers_do_not_look() -> None:
    state = object()
    assert Router().see(torch.zeros(2, 3), state) is state
