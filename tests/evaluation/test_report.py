"""What a report says of a network: by hand on decisions that a test makes, and of networks as they are."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.cost.macs import measure_cost
from sidestep.errors import ExecutionError
from sidestep.evaluation.report import Report, Seen, evaluate_network, report_of
from sidestep.execution.execution import EXECUTIONS
from sidestep.types import Batch, CostModel, Decisions, RoutedOutput
from tests import strategies
from tests.doubles import shared_exit_network, shared_halting_network, shared_network

# Two gates of 100 and 300 MACs, whose routers take 10 and 20, behind a stem of 1,000.
COST = CostModel(
    fixed=1000.0,
    options=torch.tensor([[0.0, 100.0], [0.0, 300.0]]),
    routers=torch.tensor([10.0, 20.0]),
)
EXECUTED = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
PREDICTED, LABELS = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])


def output(executed: torch.Tensor, predicted: torch.Tensor) -> RoutedOutput:
    decisions = Decisions(weights=torch.stack([1 - executed, executed], dim=2))
    return RoutedOutput(logits=torch.nn.functional.one_hot(predicted, 3).float(), decisions=decisions)


def report(
    executed: torch.Tensor = EXECUTED,
    predicted: torch.Tensor = PREDICTED,
    labels: torch.Tensor = LABELS,
    *,
    size: int = 4,
) -> Report:
    seen = Seen()
    for part in torch.arange(len(labels)).split(size):
        seen.add(output(executed[part], predicted[part]), labels[part], COST)
    return report_of(seen, COST, num_classes=3, execution="masked", decisions="argmax")


def test_a_report_by_hand() -> None:
    found = report()
    assert (found.num_images, found.accuracy) == (4, 0.75)
    assert found.keep_rates == [0.75, 0.25]
    assert (found.num_paths, found.executed_mean) == (3, 1.0)
    assert found.executed_std == pytest.approx(0.5**0.5)
    # One path has two of the four images. All know the class (0.81 bits), as they do in half of all ways to
    # deal the classes out: where the one image of class 1 shares its path a half of a bit is left to guess.
    assert found.image_bits == pytest.approx(1.5)
    entropy = 2 - 0.75 * math.log2(3)
    assert found.class_bits == pytest.approx(entropy - (entropy + entropy - 0.5) / 2)
    # 1100, 1400, 1000 and 1100 MACs without routers, which take 30; the full network takes 1400.
    assert found.gflops_without_routers == pytest.approx(2e-9 * 1150)
    assert found.gflops == pytest.approx(2e-9 * 1180)
    assert found.gflops_std == pytest.approx(2e-9 * ((50**2 + 250**2 + 150**2 + 50**2) / 4) ** 0.5)
    assert found.fraction_of_full == pytest.approx(1180 / 1400)
    assert found.ponder is None and found.exit_rates is None and found.exit_accuracies is None


def test_keep_rates_per_class_are_means_over_its_images() -> None:
    rates = report().keep_rates_per_class
    assert rates[0] == pytest.approx([2 / 3, 0.0])
    assert rates[1] == [1.0, 1.0]
    # A class without images.
    assert rates[2] == [0.0, 0.0]


@given(data=st.data(), size=st.integers(1, 6))
def test_neither_order_nor_batches_of_images_matter(data: st.DataObject, size: int) -> None:
    executed = data.draw(strategies.execution_tables(2, batch=6))
    predicted, labels = (
        torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))) for _ in range(2)
    )
    order = torch.tensor(data.draw(st.permutations(range(6))))
    one = report(executed, predicted, labels, size=6).as_dict()
    other = report(executed[order], predicted[order], labels[order], size=size).as_dict()
    for key, value in one.items():
        if key == "keep_rates_per_class":
            torch.testing.assert_close(torch.tensor(value), torch.tensor(other[key]))
        else:
            equal = value if isinstance(value, str | None) else pytest.approx(value, abs=1e-12, rel=1e-5)
            assert other[key] == equal, key


@given(executed=strategies.execution_tables(2, batch=4))
def test_keep_rates_are_the_mean_of_their_classes_weighted_by_images(executed: torch.Tensor) -> None:
    found = report(executed)
    counts = torch.bincount(LABELS, minlength=3).float()
    weighted = counts @ torch.tensor(found.keep_rates_per_class) / counts.sum()
    torch.testing.assert_close(weighted, torch.tensor(found.keep_rates))
    assert found.executed_mean == pytest.approx(sum(found.keep_rates))
    assert 1000 / 1400 < found.fraction_of_full <= 1430 / 1400 + 1e-6


def test_sums_are_taken_in_full_precision_under_autocast() -> None:
    expected = report()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert report() == expected


def test_where_images_leave_is_a_part_of_their_path() -> None:
    decisions = Decisions(
        weights=torch.zeros(3, 0, 2), exits=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    )
    exit_logits = torch.tensor([[[2.0, 1.0]] * 3, [[1.0, 2.0]] * 3])
    cost = CostModel(
        fixed=0.0,
        options=torch.zeros(0, 2),
        routers=torch.zeros(0),
        exits=torch.tensor([100.0, 400.0]),
        exit_units=torch.tensor([0, 0]),
    )
    seen = Seen()
    logits = torch.stack([exit_logits[0, 0], exit_logits[1, 1], exit_logits[0, 2]])
    seen.add(
        RoutedOutput(logits=logits, decisions=decisions, exit_logits=exit_logits),
        torch.tensor([0, 1, 1]),
        cost,
    )
    found = report_of(seen, cost, num_classes=2, execution="masked", decisions="argmax")
    assert found.exit_rates == pytest.approx([2 / 3, 1 / 3])
    assert found.exit_accuracies == pytest.approx([1 / 3, 2 / 3])
    assert (found.num_paths, found.accuracy) == (2, pytest.approx(2 / 3))
    assert found.gflops == pytest.approx(2e-9 * 200)
    assert found.fraction_of_full == pytest.approx(0.5)


def batches(seed: int = 0, size: int = 8) -> list[Batch]:
    images, labels = strategies.images(6, seed, size=size), torch.arange(6) % 3
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


def test_a_report_is_that_of_the_networks_output_and_leaves_its_mode() -> None:
    network = shared_network().train()
    cost = measure_cost(network, (8, 8))
    found = evaluate_network(network, batches(), cost, num_classes=3)
    assert network.training
    network.eval()
    with torch.no_grad():
        output = network(strategies.images(6, 0))
    right = output.logits.argmax(dim=1) == torch.arange(6) % 3
    assert found.accuracy == pytest.approx(right.double().mean().item())
    assert found.keep_rates == pytest.approx(output.decisions.keep_rates().tolist())
    assert (found.execution, found.decisions, found.num_images) == ("masked", "argmax", 6)
    values = found.as_dict()
    assert json.loads(json.dumps(values)) == values


def test_without_a_rule_all_images_leave_at_the_last_exit() -> None:
    network = shared_exit_network("ranet")
    found = evaluate_network(network, batches(size=16), measure_cost(network, (16, 16)), num_classes=10)
    assert found.exit_rates is not None and found.exit_accuracies is not None
    assert found.exit_rates[:-1] == [0.0] * (len(found.exit_rates) - 1) and found.exit_rates[-1] == 1.0
    assert found.exit_accuracies[-1] == found.accuracy
    assert found.fraction_of_full == pytest.approx(1.0)


def test_a_cascade_needs_exits() -> None:
    network = shared_network()
    with pytest.raises(
        ExecutionError, match="cascade execution needs early exits at which images leave, got a"
    ):
        evaluate_network(
            network,
            batches(),
            measure_cost(network, (8, 8)),
            num_classes=3,
            execution=EXECUTIONS["cascade"],
        )
