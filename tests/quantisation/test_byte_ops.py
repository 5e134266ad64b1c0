"""Operations on bytes, a batch at a time, against the literal integers of docs/plan.md: no byte differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep.plan.byte_maps import Grid, grids_of
from sidestep.plan.format import Plan, inputs_of, version_of
from sidestep.targets.torch_plan import TorchPlan
from tests.reference.byte_plan import Bytes
from tests.reference.plan import _run_ops

IN = {"scale": 0.043, "zero": 37}
OUT = {"scale": 0.11, "zero": 12}
CONV = {"op": "conv", "in": 1, "weight": "w", "weight_scale": "s", "bias": "b", "stride": 1, "padding": 1}
CONV |= {"groups": 1, "residual": None, "relu": False}

# Operations on value 1, which is bytes of IN, on 2, bytes of another grid, and on the vector 3.
CASES: dict[str, dict[str, Any]] = {
    "conv": CONV | OUT,
    "conv_that_adds": CONV | OUT | {"residual": 2, "relu": True},
    "conv_by_steps": CONV | OUT | {"stride": 2, "activation": "relu6"},
    "conv_same": CONV | OUT | {"stride": 2, "padding": 0, "same": True, "bias": None},
    "conv_in_groups": CONV | OUT | {"weight": "w2", "groups": 2, "relu": True},
    "conv_by_channel": CONV | OUT | {"weight": "w4", "groups": 4},
    "conv_by_table": CONV | OUT | {"table": "t", "inner_scale": 0.2, "inner_zero": 128, "activation": "silu"},
    "linear": {"op": "linear", "in": 3, "weight": "v", "weight_scale": "s", "bias": "b", "relu": True}
    | {"in_scale": 0.02, "in_zero": 100},
    "affine": {"op": "affine", "in": 1, "weight": "s4", "bias": "b4", "relu": True} | OUT,
    "add": {"op": "add", "in": [1, 2], "relu": True} | OUT,
    "add_up_to_six": {"op": "add", "in": [2, 1], "relu": False, "activation": "relu6"} | OUT,
    "scale": {"op": "scale", "in": [1, 3]} | OUT,
    "pad": {"op": "pad", "in": 1, "stride": 2, "before": 1, "after": 2},
    "avg_pool": {"op": "avg_pool", "in": 1, "kernel": 3, "stride": 2, "ceil": False},
    "avg_pool_over_the_edge": {"op": "avg_pool", "in": 1, "kernel": 2, "stride": 2, "ceil": True},
    "max_pool": {"op": "max_pool", "in": 1, "kernel": 3, "stride": 2, "padding": 1},
    "crop": {"op": "crop", "in": 1, "size": [4, 3]},
    "resize": {"op": "resize", "in": 1, "size": [9, 5], "align_corners": False},
    "concat": {"op": "concat", "in": [1, 1]},
    "relu": {"op": "relu", "in": 1},
    "activate": {"op": "activate", "in": 1, "function": "hard_swish", "table": "t"} | OUT,
    "gap": {"op": "gap", "in": 1},
    "flatten": {"op": "flatten", "in": 1},
    "quantize": {"op": "quantize", "in": 0} | OUT,
    "quantize_again": {"op": "quantize", "in": 1} | OUT,
    "dequantize": {"op": "dequantize", "in": 1},
}


def plan_with(op: dict[str, Any]) -> Plan:
    """Return a plan whose last operation is the one that is tested, on weights of every kind."""
    torch.manual_seed(1)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape).to(torch.int8)

    tensors = {
        "w": whole(6, 4, 3, 3),
        "w2": whole(6, 2, 3, 3),
        "w4": whole(6, 1, 3, 3).repeat(2, 1, 1, 1)[:8],
        "v": whole(6, 4),
        "t": torch.randint(256, (256,)).to(torch.uint8),
        "s": torch.rand(6) * 1e-3 + 1e-4,
        "b": torch.randn(6),
        "s4": torch.rand(4) * 2 - 0.5,
        "b4": torch.randn(4),
    }
    if op.get("weight") == "w4":
        tensors |= {"s": torch.rand(8) * 1e-3 + 1e-4, "b": torch.randn(8)}
    before: list[dict[str, Any]] = [
        {"op": "quantize", "in": 0, "out": 1, **IN},
        {"op": "quantize", "in": 0, "out": 4, "scale": 0.031, "zero": 90},
        {"op": "concat", "in": [4], "out": 5},
        {"op": "gap", "in": 1, "out": 3},
    ]
    # The summand of a convolution has its six channels.
    channels = {"op": "pad", "in": 5, "out": 2, "stride": 1, "before": 1, "after": 1}
    if op["op"] == "add":
        channels = {"op": "concat", "in": [5], "out": 2}
    steps: list[Any] = [{"ops": [*before, channels, op | {"out": 6}]}]
    document = {
        "version": version_of(steps),
        "input": {"channels": 4, "size": [7, 6]},
        "steps": steps,
        "output": 6,
    }
    return Plan(document=document, tensors=tensors)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_computed_as_the_page_says(name: str) -> None:
    plan, images = plan_with(CASES[name]), torch.randn(5, 4, 7, 6) * 3
    assert plan.document["version"] == 3
    values = {0: images}
    TorchPlan(plan).run_ops(plan.steps[0]["ops"], values, len(images))
    grids = grids_of(plan.steps)
    spread = set()
    for row, image in enumerate(images):
        literal: dict[int, Any] = {0: image}
        _run_ops(plan.steps[0]["ops"], literal, plan.tensors)
        wanted, found = literal[6], values[6][row]
        if isinstance(wanted, Bytes):
            assert Grid(wanted.scale, wanted.zero) == grids[6]
            wanted = wanted.q
        if name == "resize":  # sums of float32 in another order
            assert (found.int() - wanted.int()).abs().max() <= 1
            continue
        assert torch.equal(found, wanted)
        spread.update(wanted.flatten().tolist())
    # An operation that cuts everything off would agree too.
    assert name == "resize" or len(spread) > 8


def test_every_operation_on_bytes_is_tested() -> None:
    from sidestep.targets.byte_ops import _OPS

    assert {case["op"] for case in CASES.values()} == set(_OPS)
    assert all(inputs_of(case | {"out": 6}) for case in CASES.values())


def test_numbers_become_the_nearest_bytes() -> None:
    grid = Grid(0.5, 10)
    numbers = torch.tensor([-9.0, -5.0, -4.75, -4.25, 0.0, 0.25, 0.75, 1.0, 122.5, 300.0, torch.nan])
    assert grid.to_bytes(numbers).tolist() == [0, 0, 0, 2, 10, 10, 12, 12, 255, 255, 0]
    assert grid.to_numbers(torch.tensor([0, 10, 12], dtype=torch.uint8)).tolist() == [-5.0, 0.0, 1.0]
