"""Choices with biases, and budgets that are asked for in a call."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan, PlanError, read_plan

MOST = 1e30


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)


def engine_of(num_threads: int = 1, **changes: Any) -> Engine:
    plan = dataclasses.replace(plans.routed_resnet(), **changes)
    return Engine(plan, precision="float32", num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_image_has_its_own_biases(num_threads: int) -> None:
    engine, x = engine_of(num_threads), images(6)
    asked = np.array([MOST, -MOST, 0.0, 0.0, MOST, -MOST])
    free = engine(x)
    for rows in (slice(None), slice(0, 1), slice(2, 3)):  # an image alone is shared
        found = engine(x[rows], biases=np.tile(asked[rows, None], (1, 6)))
        for bias, options, own in zip(asked[rows], found.options, free.options[rows], strict=True):
            np.testing.assert_array_equal(options, {MOST: 1, -MOST: 0}[bias] if bias else own)
    np.testing.assert_array_equal(engine(x, biases=np.zeros((6, 6))).logits, free.logits)


def test_more_bias_executes_more() -> None:
    engine, x = engine_of(), images(16)
    executed = [
        int(engine(x, biases=np.full((16, 6), bias)).options[:, 0].sum()) for bias in np.linspace(-9, 9, 7)
    ]
    assert executed == sorted(executed) and executed[0] < executed[-1]


def test_of_three_options_the_middle_one_has_half_the_bias() -> None:
    maker = plans.Maker()
    maker.tensors["scores"] = np.array([0.0, -0.4, -1.5], dtype=np.float32)
    x = maker.conv(0, 3, 8)
    scores = maker.op("vconst", weight="scores")
    (out,) = maker.choose(scores, [lambda: [x], lambda: [x], lambda: [x]])
    logits = maker.linear(maker.op("gap", **{"in": out}), 8, 10)
    engine = Engine(maker.plan(logits), precision="float32", num_threads=1)
    found = engine(images(4), biases=np.array([[0.0], [1.0], [2.0], [2.3]]))
    assert found.options[:, 0].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "biases", [np.zeros((3, 6)), np.zeros((4, 5)), np.zeros(4), np.array([["a"] * 6] * 4)]
)
def test_biases_that_do_not_fit_are_refused(biases: np.ndarray) -> None:
    with pytest.raises(PlanError, match="biases must be"):
        engine_of()(images(4), biases=biases)


def with_dial(folder: Path, levels: Any, **cost: Any) -> Plan:
    """Return a plan with a record, as a file says it."""
    path = folder / "dial.plan"
    plans.write(plans.routed_resnet(), path, dial=levels, cost={"full_macs": 100.0} | cost)
    return read_plan(path)


LEVELS = [
    {"macs": 40.0, "accuracy": 0.5, "biases": [-MOST] * 6},
    {"macs": 60.0, "accuracy": 0.7, "biases": [0.0] * 6},
    {"macs": 110.0, "accuracy": 0.6, "biases": [MOST] * 6},
]


def test_a_call_takes_the_dearest_level_within_its_budget(tmp_path: Path) -> None:
    engine, x = Engine(with_dial(tmp_path, LEVELS), precision="float32", num_threads=1), images(4)
    free = engine(x)
    assert engine(x, budget=0.59).options.sum() == 0
    np.testing.assert_array_equal(engine(x, budget=0.6).logits, free.logits)
    assert engine(x, budget=2).options.min() == 1
    with pytest.raises(PlanError, match=r"budget must be at least 0\.4000, the plan's smallest, got 0\.3"):
        engine(x, budget=0.3)
    with pytest.raises(PlanError, match="give one of them"):
        engine(x, budget=0.6, biases=np.zeros((4, 6)))
    with pytest.raises(PlanError, match="the plan has one budget"):
        engine_of()(x, budget=0.6)


def test_budgets_of_exits_are_taken_in_a_call_too() -> None:
    plan = plans.every_kind()
    rows = [{"macs": 40.0, "thresholds": [-1.0]}, {"macs": 90.0, "thresholds": [2.0]}]
    made = dataclasses.replace(plan, levels=rows, cost={"full_macs": 100.0})
    engine = Engine(made, precision="float32", num_threads=1)
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    assert engine(x, budget=0.5).exits.tolist() == [0, 0, 0]
    assert engine(x, budget=0.9).exits.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("levels", "cost"),
    [
        ("x", {}), ([3], {}), ([{"macs": 1.0}], {}), ([{"macs": "x", "biases": [0.0] * 6}], {}),
        ([{"macs": 1.0, "biases": [0.0] * 5}], {}), ([{"macs": 1.0, "biases": [None] * 6}], {}),
        ([{"macs": 10**400, "biases": [0.0] * 6}], {}), (LEVELS, {"full_macs": 0.0}),
        (LEVELS, {"full_macs": "x"}),
    ],
)  # fmt: skip
def test_records_that_are_none_are_refused(levels: Any, cost: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="export the run again"):
        with_dial(tmp_path, levels, **cost)
