"""Biases of gates by hand, and budgets that are kept of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.execution.execution import gathered
from sidestep.routing.dial import (
    MOST,
    DialledRouter,
    DialLevel,
    Frontier,
    frontier_from,
    without_dial,
)
from sidestep.routing.router import Router, always
from sidestep.routing.samplers import argmax
from tests.doubles import shared_network

FRONTIER = Frontier(
    full_macs=100.0,
    levels=[
        DialLevel(macs=40.0, accuracy=0.8, biases=[-MOST] * 3),
        DialLevel(macs=60.0, accuracy=0.9, biases=[0.0, 0.5, -0.5]),
        DialLevel(macs=105.0, accuracy=0.85, biases=[MOST] * 3),
    ],
)


class Told(Router):
    """Says what it was told, of unit 1 that it always executes."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        return always(1, self.logits.shape[1], features) if unit == 1 else self.logits, state


def options(router: Router, unit: int = 0) -> list[int]:
    logits, _ = router(unit, torch.zeros(3, 1, 1, 1), None)
    chosen: list[int] = argmax(logits).weights.argmax(dim=1).tolist()
    return chosen


def test_a_bias_moves_images_in_the_order_of_their_margins() -> None:
    told = Told(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, -2.0]]))
    assert options(told) == [1, 0, 0]
    found = {bias: options(DialledRouter(told, [bias, bias])) for bias in (-1.0, 0.4, 0.6, 2.1, MOST, -MOST)}
    # A tie skips, as without a bias.
    assert found == {
        -1.0: [0, 0, 0], 0.4: [1, 0, 0], 0.6: [1, 1, 0], 2.1: [1, 1, 1], MOST: [1, 1, 1], -MOST: [0, 0, 0]
    }  # fmt: skip


@pytest.mark.parametrize("bias", [-MOST, MOST])
def test_units_without_a_gate_stay_as_they_are(bias: float) -> None:
    assert options(DialledRouter(Told(torch.zeros(3, 2)), [bias, bias]), unit=1) == [1, 1, 1]


def test_of_three_options_the_middle_one_has_half_the_bias() -> None:
    told = Told(torch.tensor([[0.0, -0.4, -1.5]] * 3))
    found = [options(DialledRouter(told, [bias, bias], 3))[0] for bias in (0.0, 1.0, 2.0, 2.3)]
    # 0.5 - 0.4 is above 0 and above 1 - 1.5; with 2.3 it is 0.75 against 0.8.
    assert found == [0, 1, 1, 2]


def test_a_dial_is_taken_off_again() -> None:
    told = Told(torch.zeros(3, 2))
    assert without_dial(DialledRouter(told, [0.0, 0.0])) is told
    assert without_dial(told) is told and without_dial(None) is None


def test_the_dearest_level_within_a_budget_is_taken() -> None:
    assert [FRONTIER.at(budget).macs for budget in (0.4, 0.59, 0.6, 1.0, 1.05)] == [40, 40, 60, 60, 105]
    # As a table prints it.
    assert FRONTIER.at(0.39995).macs == 40
    with pytest.raises(ExecutionError, match=r"budget must be at least 0\.4000 of the full network's MACs"):
        FRONTIER.at(0.3)
    with pytest.raises(ExecutionError, match="above 0 and finite, got nan"):
        FRONTIER.at(float("nan"))


def test_a_frontier_is_read_as_it_was_kept() -> None:
    assert frontier_from(asdict(FRONTIER), 3) == FRONTIER


@pytest.mark.parametrize(
    "change",
    [
        {"levels": []},
        {"levels": 3},
        {"full_macs": 0},
        {"full_macs": "many"},
        {"levels": [{"macs": 1.0, "accuracy": 0.5, "biases": [0.0]}]},
        {"levels": [{"macs": 1.0, "accuracy": 0.5, "biases": [0.0, 0.0, float("nan")]}]},
        {"levels": [{"macs": 1.0, "accuracy": 0.5, "biases": [0.0, 0.0, "x"]}]},
        {"levels": [{"macs": 1.0, "accuracy": 0.5, "biases": [0.0] * 3, "more": 1}]},
        {"levels": [{"macs": m, "accuracy": 0.5, "biases": [0.0] * 3} for m in (2.0, 1.0)]},
    ],
)
def test_values_that_are_no_frontier_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ExecutionError, match="must have macs, accuracy and a bias for every unit"):
        frontier_from(asdict(FRONTIER) | change, 3)


def test_a_call_takes_a_budget_and_leaves_the_network_as_it_is() -> None:
    network, images = shared_network(), torch.randn(8, 3, 8, 8)
    router, before = network.router, network(images).decisions.weights
    with pytest.raises(ExecutionError, match="a budget in a call needs gates whose budgets"):
        network(images, budget=0.6)
    network.frontier = FRONTIER
    try:
        for execution in (gathered, None):
            how = {} if execution is None else {"execution": execution}
            rates = [network(images, budget=b, **how).decisions.keep_rates() for b in (0.4, 1.1)]
            assert rates[0].sum() == 0 and rates[1].min() == 1
        with pytest.raises(ExecutionError, match="no other router"):
            network(images, budget=0.6, router=router)
    finally:
        network.frontier = None
    assert network.router is router
    torch.testing.assert_close(network(images).decisions.weights, before)
