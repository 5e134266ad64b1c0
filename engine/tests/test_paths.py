"""Paths that are given instead of decided."""

from __future__ import annotations

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan, PlanError


def images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, size, size)).astype(np.float32)


def all_take(plan: Plan, option: int) -> Plan:
    """Return a routed plan whose gates all say the same."""
    last = [op["bias"] for step in plan.steps for op in step.get("ops", []) if op["op"] == "linear"][1:-1:2]
    for name in last:
        plan.tensors[name] = np.array([0, 1e9] if option else [1e9, 0], dtype=np.float32)
    return plan


@pytest.mark.parametrize("count", [1, 9])
def test_the_path_that_a_network_decides_gives_what_it_says(count: int) -> None:
    engine = Engine(plans.routed_resnet(2, (16, 32), seed=3), precision="float32", num_threads=2)
    x = images(count)
    free = engine(x)
    given = engine(x, options=free.options, exits=free.exits)
    np.testing.assert_array_equal(given.logits, free.logits)
    np.testing.assert_array_equal(given.options, free.options)


@pytest.mark.parametrize("option", [0, 1])
def test_a_given_path_is_the_one_that_such_gates_would_choose(option: int) -> None:
    free = Engine(plans.routed_resnet(2, (16, 32), seed=3), precision="float32", num_threads=1)
    bent = all_take(plans.routed_resnet(2, (16, 32), seed=3), option)
    x = images(5)
    path = np.full((5, 4), option)
    given = free(x, options=path, exits=np.zeros(5, dtype=np.int32))
    wanted = Engine(bent, precision="float32", num_threads=1)(x)
    np.testing.assert_array_equal(wanted.options, path)
    np.testing.assert_array_equal(given.options, path)
    np.testing.assert_array_equal(given.logits, wanted.logits)


def test_images_leave_at_the_exit_that_is_given() -> None:
    plan = plans.every_kind()
    x, options = images(4, 8), np.array([[0], [1], [0], [1]])
    given = Engine(plan, precision="float32")(x, options=options, exits=np.array([0, 0, 1, 1]))
    assert given.exits.tolist() == [0, 0, 1, 1] and given.options.tolist() == options.tolist()
    said = []
    for threshold in (-1.0, 2.0):
        plan.steps[-2]["exit"]["threshold"] = threshold
        engine = Engine(plan, precision="float32")
        free = engine(x)
        assert set(free.exits.tolist()) == {int(threshold > 0)}
        again = engine(x, options=free.options, exits=free.exits)
        np.testing.assert_array_equal(again.logits, free.logits)
        said.append(engine(x, options=options, exits=free.exits).logits)
    np.testing.assert_array_equal(given.logits, np.concatenate([said[0][:2], said[1][2:]]))
    assert not np.allclose(said[0], said[1])


@pytest.mark.parametrize(
    ("options", "exits", "said"),
    [
        (np.zeros((2, 4), int), None, "one option for every image and choice"),
        (None, np.zeros(2, int), "one option for every image and choice"),
        (np.zeros((2, 3), int), np.zeros(2, int), "one option for every image and choice"),
        (np.zeros((1, 4), int), np.zeros(2, int), "one option for every image and choice"),
        (np.zeros((2, 4), int), np.zeros(3, int), "one option for every image and choice"),
        (np.zeros((2, 4)), np.zeros(2, int), "options of a path must be integers in 2 dimensions"),
        (np.zeros(4, int), np.zeros(2, int), "options of a path must be integers in 2 dimensions"),
        (np.full((2, 4), 2), np.zeros(2, int), "options of a path must be from 0 to 1 at choice 0, got 2"),
        (np.full((2, 4), -1), np.zeros(2, int), "options of a path must be from 0 to 1 at choice 0, got -1"),
        (np.zeros((2, 4), int), np.ones(2, int), "exits of a path must be from 0 to 0, got 1"),
    ],
)
def test_what_is_no_path_is_refused(options: np.ndarray, exits: np.ndarray, said: str) -> None:
    engine = Engine(plans.routed_resnet(2, (16, 32), seed=3), precision="float32", num_threads=1)
    with pytest.raises(PlanError, match=said):
        engine(images(2), options=options, exits=exits)
