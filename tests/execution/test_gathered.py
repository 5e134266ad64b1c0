from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.execution.execution import blend, gathered, masked
from sidestep.execution.gather import run_chosen
from sidestep.layers.shortcut import Shortcut
from sidestep.layers.unit import Unit
from tests import strategies
from tests.doubles import TableRouter, branch_rows, lively_backbone, lively_network, shared_network

MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


@MODES
@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=["even", "odd"])
@given(depth=strategies.depths, shortcut=strategies.shortcuts, data=st.data())
def test_gathered_equals_masked_and_only_executing_images_enter_a_branch(
    size: tuple[int, int], mode: type, depth: int, shortcut: Shortcut, data: st.DataObject
) -> None:
    network = shared_network(depth, shortcut)
    units = len(network.backbone.units)
    table = data.draw(strategies.execution_tables(units))
    images = torch.randn(len(table), 3, *size, generator=strategies.generator(data.draw(strategies.seeds)))
    before = images.clone()
    with mode():
        expected = network(images, router=TableRouter(table), execution=masked)
        with branch_rows(network.backbone) as rows:
            actual = network(images, router=TableRouter(table), execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    assert rows == table.sum(dim=0).tolist()
    assert torch.equal(images, before)


@MODES
@pytest.mark.parametrize("execution", [0.0, 1.0], ids=["none run", "all run"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shortcut", ["A", "B", "pool_end", "pool_both"])
def test_the_extreme_paths_run_no_branch_or_every_branch(
    shortcut: Shortcut, batch: int, execution: float, mode: type
) -> None:
    network, images = shared_network(14, shortcut), strategies.images(batch, 0)
    router = TableRouter(torch.full((batch, 6), execution))
    with mode():
        expected = network(images, router=router, execution=masked)
        with branch_rows(network.backbone) as rows:
            actual = network(images, router=router, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert rows == [batch * execution] * 6


@pytest.mark.parametrize("shortcut", ["A", "B", "pool_end", "pool_both"])
def test_all_run_gathered_equals_the_static_network(shortcut: Shortcut) -> None:
    network, images = shared_network(8, shortcut), strategies.images(3, 0)
    gathered_logits = network(images, router=TableRouter(torch.ones(3, 3)), execution=gathered).logits
    torch.testing.assert_close(gathered_logits, network.backbone(images), rtol=1e-5, atol=1e-5)


@MODES
@given(
    depth=strategies.depths,
    shortcut=strategies.shortcuts,
    batch=strategies.batch_sizes,
    seed=strategies.seeds,
)
def test_routers_decide_the_same_in_both_executions(
    mode: type, depth: int, shortcut: Shortcut, batch: int, seed: int
) -> None:
    network, images = shared_network(depth, shortcut), strategies.images(batch, seed)
    with mode():
        expected = network(images, execution=masked)
        with branch_rows(network.backbone) as rows:
            actual = network(images, execution=gathered)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert rows == actual.decisions.execution().sum(dim=0).tolist()


def test_masked_execution_computes_every_branch_for_every_image() -> None:
    network = shared_network(8)
    with torch.no_grad(), branch_rows(network.backbone) as rows:
        network(strategies.images(4, 0), router=TableRouter(torch.zeros(4, 3)), execution=masked)
    assert rows == [4, 4, 4]


@pytest.mark.parametrize("index", [0, 1], ids=["identity", "stage opener"])
@pytest.mark.parametrize("rows", [[0, 0, 0], [0, 1, 0], [1, 1, 1]])
def test_outside_inference_mode_the_features_that_come_in_are_left_as_they_were(
    index: int, rows: list[int]
) -> None:
    unit = lively_backbone(8).units[index]
    x = torch.rand(3, 16, 6, 6)
    before = x.clone()
    execution = torch.tensor(rows).float()
    with torch.no_grad():
        run_chosen(unit, x, torch.stack([1 - execution, execution], dim=1))
    assert torch.equal(x, before)


def test_in_inference_mode_the_output_takes_the_place_of_the_features() -> None:
    unit, weights = lively_backbone(8).units[0], torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with torch.inference_mode():
        x = torch.rand(2, 16, 6, 6)
        expected = blend(unit, x, weights)
        out = run_chosen(unit, x, weights)
    assert out.data_ptr() == x.data_ptr()
    torch.testing.assert_close(out, expected)


@MODES
def test_images_keep_their_places(mode: type) -> None:
    unit, execution = lively_backbone(8).units[0], torch.tensor([0.0, 1.0, 0.0, 1.0])
    with mode():
        x = torch.rand(4, 16, 6, 6)
        before, executed = x.clone(), unit.execute(x)
        out = run_chosen(unit, x, torch.stack([1 - execution, execution], dim=1))
    assert torch.equal(out[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(out[[1, 3]], executed[[1, 3]])


@pytest.mark.parametrize("shortcut", ["A", "B", "pool_end", "pool_both"])
def test_channels_last_is_kept_inside_and_behind_the_branches(shortcut: Shortcut) -> None:
    network = lively_network(14, shortcut).to(memory_format=torch.channels_last)
    kept = []

    def check(tensor: Tensor) -> None:
        kept.append(tensor.is_contiguous(memory_format=torch.channels_last))

    def recording(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        out = run_chosen(unit, x, weights)
        check(out)
        return out

    for unit in network.backbone.units:
        unit.conv1.register_forward_pre_hook(lambda module, inputs: check(inputs[0]))
    images = strategies.images(4, 0, size=16).to(memory_format=torch.channels_last)
    table = torch.tensor([[1, 0, 1, 0, 1, 1]] * 2 + [[0, 1, 0, 1, 0, 1]] * 2)
    with torch.inference_mode():
        network(images, router=TableRouter(table), execution=replace(masked, run=recording))
    assert kept == [True] * 12


@pytest.mark.parametrize("batch", [1, 4])
def test_autocast_gives_gathered_and_masked_the_same_dtype_and_values(batch: int) -> None:
    network, images = shared_network(8, "B"), strategies.images(batch, 0)
    router = TableRouter(torch.randint(0, 2, (batch, 3)))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images, router=router, execution=masked).logits
        actual = network(images, router=router, execution=gathered).logits
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


def test_training_mode_is_refused_with_a_way_out() -> None:
    network = lively_network().train()
    with pytest.raises(ExecutionError, match=r"training mode; call model.eval\(\) first"):
        network(strategies.images(2, 0), execution=gathered)
