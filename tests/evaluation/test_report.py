from __future__ import annotations

import pytest
import torch

from sidestep.cost.macs import measure_cost
from sidestep.evaluation.report import evaluate_network
from sidestep.types import Batch
from tests import strategies
from tests.doubles import shared_halting_network, shared_network


def batches(seed: int = 0) -> list[Batch]:
    images, labels = strategies.images(6, seed), torch.arange(6) % 3
    return [Batch(images=images[rows], labels=labels[rows]) for rows in (slice(0, 4), slice(4, 6))]


def test_the_report_of_a_halting_network_holds_its_costs_and_ponder_costs() -> None:
    network = shared_halting_network(spatial=True)
    cost = measure_cost(network, (8, 8))
    report = evaluate_network(network, batches(), cost, num_classes=3)
    with torch.no_grad():
        output = network(strategies.images(6, 0))
    gflops = 2e-9 * cost.per_sample(output.decisions)
    assert report.gflops == pytest.approx(gflops.mean().item(), rel=1e-5)
    assert report.gflops_std == pytest.approx(gflops.std(unbiased=False).item(), rel=1e-3)
    assert report.ponder == pytest.approx(output.ponder.mean(dim=0).tolist(), rel=1e-5)


def test_other_networks_have_no_ponder_cost() -> None:
    network = shared_network()
    assert evaluate_network(network, batches(), measure_cost(network, (8, 8)), num_classes=3).ponder is None
