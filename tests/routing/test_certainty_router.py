"""Gates by certainty: whom they execute, what they need, and that plans and every execution decide alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError, ExportError, RecipeError
from sidestep.execution.execution import cascade, gathered
from sidestep.methods.certainty import CertaintyConfig
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.certainty_router import uncertainty
from sidestep.routing.exit_rule import CRITERIA, ExitRule
from sidestep.routing.share import ShareRouter
from tests.doubles import attached_network
from tests.reference.plan import run_plan

# Exits are behind the second and the third unit of six.
SHARES = [1.0, 0.0, 0.5, 0.75, 0.5, 0.25]
BATCH = 32


def images(count: int = BATCH) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def certain_network(shares: list[float] = SHARES) -> tuple[RoutedNetwork, ShareRouter]:
    network = attached_network("certainty", shares=shares)
    assert isinstance(network.router, ShareRouter)
    return network, network.router


def settled(shares: list[float] = SHARES) -> RoutedNetwork:
    """Return a network whose quantiles stand for its images."""
    network, router = certain_network(shares)
    with torch.no_grad():
        for _ in range(3):
            # Normalised by the statistics that evaluation has, so that both see the same logits.
            router.train()
            network(images(), sampler=router.sampler(CertaintyConfig(shares=shares)))
    return network.eval()


def card_of(network: RoutedNetwork) -> PlanCard:
    cost = measure_cost(network, (16, 16))
    mean, std = (0.0,) * 3, (1.0,) * 3
    return PlanCard(input_size=(16, 16), mean=mean, std=std, class_names=tuple("abcdefghij"), cost=cost)


def test_what_is_not_certain_is_the_entropy_by_which_images_leave() -> None:
    logits = torch.randn(8, 10)
    score = CRITERIA["entropy"].score(logits.double(), torch.ones(8))
    torch.testing.assert_close(1 - uncertainty(logits)[:, 0].double(), score, atol=1e-6, rtol=1e-5)
    assert uncertainty(torch.zeros(1, 10)).item() == pytest.approx(1)
    assert uncertainty(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)


def test_training_executes_the_images_of_which_the_last_exit_is_least_certain() -> None:
    network, router = certain_network()
    router.train()
    output = network(images(), sampler=router.sampler(CertaintyConfig(shares=SHARES)))
    executed = output.decisions.execution()
    assert output.exit_logits is not None
    for unit, exit in ((2, 0), (3, 1), (4, 1), (5, 1)):
        order = uncertainty(output.exit_logits[exit])[:, 0].argsort(descending=True)
        count = round(SHARES[unit] * BATCH)
        assert executed[order[:count], unit].all() and not executed[order[count:], unit].any()
    assert executed[:, 0].all() and not executed[:, 1].any()


def test_evaluation_keeps_the_shares_and_nested_ones_are_nested() -> None:
    executed = settled()(images()).decisions.execution()
    assert executed.mean(dim=0).tolist() == SHARES
    # Of one exit in front, who has a unit of a smaller share has those of larger ones.
    assert bool((executed[:, 5] <= executed[:, 4]).all()) and bool((executed[:, 4] <= executed[:, 3]).all())


def test_exits_and_units_learn_from_labels_alone() -> None:
    network, router = certain_network()
    assert not list(router.parameters())
    output = network.train()(images(), sampler=router.sampler(CertaintyConfig(shares=SHARES)))
    output.logits.sum().backward()
    for exits in network.exits.parameters():
        assert exits.grad is not None and not exits.grad.any()


def test_units_that_are_never_or_always_executed_keep_to_that_while_shares_close() -> None:
    _, router = certain_network()
    sampler: Any = router.sampler(CertaintyConfig(shares=SHARES, closing=0.0))
    assert sampler.shares == (1, 1, 1, 1, 1, 1) and router.never == {1}
    logits, _ = router(1, torch.zeros(4, 1), None)
    assert sampler.at(1)(logits).weights[:, 1].tolist() == [0, 0, 0, 0]
    assert sampler.at(1)(logits).chosen.tolist() == []
    logits, _ = router(0, torch.zeros(4, 1), None)
    assert sampler.at(0)(logits).weights[:, 1].tolist() == [1, 1, 1, 1]


def test_all_executions_and_plans_decide_alike() -> None:
    network = settled()
    with torch.no_grad():
        masked = network(images())
        torch.testing.assert_close(network(images(), execution=gathered).logits, masked.logits)
    plan = export_plan(network, card_of(network))
    paths = masked.decisions.paths().tolist()
    assert len({tuple(path) for path in paths}) >= 4
    for index, image in enumerate(images()):
        logits, decisions, _ = run_plan(plan.document, plan.tensors, image)
        assert decisions == paths[index]
        torch.testing.assert_close(logits, masked.logits[index], rtol=1e-4, atol=1e-5)


def test_no_image_leaves_at_an_exit() -> None:
    network = settled()
    assert network.has_early_exits and not network.lets_leave
    with pytest.raises(ExecutionError, match="needs early exits at which images leave"):
        network(images(), execution=cascade)
    rule = ExitRule(thresholds=[0.5, 0.5])
    with pytest.raises(ExecutionError, match="an exit rule must have exits at which images leave"):
        network(images(), rule=rule)
    with pytest.raises(ExportError, match="an exit rule must have exits at which images leave"):
        export_plan(network, card_of(network), rule)


def test_gates_cost_what_their_exits_do() -> None:
    network, _ = certain_network()
    cost, head = measure_cost(network, (16, 16)), 16 * 8 * 9 * 64 + 8 * 10
    assert cost.exits is None and cost.routers.tolist() == [0, 0, head, 32 * 8 * 9 * 16 + 8 * 10, 0, 0]
    assert cost.full == measure_cost(RoutedNetwork(network.backbone), (16, 16)).full
    assert network(images()).decisions.exits is None


def test_a_gate_without_an_exit_in_front_is_refused() -> None:
    network, _ = certain_network([1.0, 0.5, 0.5, 1.0, 1.0, 1.0])
    with pytest.raises(RecipeError, match="unit 1 must have an early exit in front"):
        measure_cost(network, (16, 16))
    with pytest.raises(RecipeError, match=r"name one in model\.exits, or set its share to 0 or 1"):
        network(images(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CertaintyConfig(shares=[1.5]), r"shares must be in \[0, 1\], got \[1\.5\]"),
        (lambda: CertaintyConfig(closing=2), r"closing must be in \[0, 1\], got 2"),
        (lambda: CertaintyConfig(memory=1), r"memory must be in \[0, 1\), got 1"),
        (lambda: certain_network([1.0]), "shares must name every block once, got 1 rates for 6 blocks"),
    ],
)
def test_settings_that_are_wrong_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_members_of_cascades_have_no_such_gates() -> None:
    network, _ = certain_network()
    with pytest.raises(RecipeError, match="members must decide without their early exits"):
        CascadeNetwork([network, network], [nn.Identity(), nn.Identity()])
