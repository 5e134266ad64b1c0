"""The engine's promises that do not depend on one op: paths, types, threads, memory."""

from __future__ import annotations

import dataclasses
import gc
import resource
import threading
from pathlib import Path

import numpy as np
import plans
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep_engine import Engine, Plan, PlanError


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(plans.routed_resnet(2, (16, 32), seed=3), precision="float32", num_threads=2)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def normalised(bytes_: np.ndarray) -> np.ndarray:
    return ((bytes_.astype(np.float32) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)


def test_bytes_are_normalised(engine: Engine) -> None:
    x = pixels(5)
    np.testing.assert_allclose(engine(x).logits, engine(normalised(x)).logits, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_neither_order_nor_company_matters(order: list[int], part: int) -> None:
    engine = Engine(plans.routed_resnet(1, (16,), seed=2), precision="float32", num_threads=2)
    x = normalised(pixels(9))
    whole = engine(x)
    shuffled = engine(x[order])
    np.testing.assert_array_equal(shuffled.options, whole.options[order])
    np.testing.assert_allclose(shuffled.logits, whole.logits[order], atol=1e-5)
    np.testing.assert_allclose(engine(x[:part]).logits, whole.logits[:part], atol=1e-5)


def test_a_thousand_images_and_none(engine: Engine) -> None:
    x = normalised(pixels(1000))
    output = engine(x)
    np.testing.assert_allclose(
        output.logits[::333],
        np.concatenate([engine(x[i : i + 1]).logits for i in range(0, 1000, 333)]),
        atol=1e-5,
    )
    empty = engine(x[:0])
    assert empty.logits.shape == (0, 10) and empty.options.shape == (0, 4) and empty.exits.shape == (0,)


def test_arrays_that_are_not_contiguous(engine: Engine) -> None:
    x = normalised(pixels(6))
    np.testing.assert_array_equal(engine(x[::2]).logits, engine(x[::2].copy()).logits)
    np.testing.assert_allclose(
        engine(x.astype(np.float64)[:, :, ::-1]).logits, engine(x[:, :, ::-1].copy()).logits
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((3, 32, 32), np.float32), "four dimensions"),
        (np.zeros((1, 4, 32, 32), np.float32), "must have 3 channels, got 4"),
        (np.zeros((1, 32, 32, 1), np.uint8), "must have 3 channels, got 1"),
        (np.zeros((1, 32, 32, 3), np.float32), r"got 32 in .*normalised floats are \(B, C, H, W\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"got 32 in .*uint8 pixels are \(B, H, W, C\)"),
        (np.zeros((1, 3, 32, 32), bool), "uint8 pixels or normalised floats"),
        (np.zeros((1, 3, 32, 32), np.complex64), "uint8 pixels or normalised floats"),
        ([[1.0], [1.0, 2.0]], "must be an array that NumPy can read"),
        (None, "four dimensions"),
        (np.zeros((1, 3, 32, 32), np.int64), "uint8 pixels or normalised floats"),
        (np.zeros((1, 3, 0, 32), np.float32), "1 to 16384 pixels"),
        (np.zeros((1, 3, 32, 32), object), "uint8 pixels or normalised floats"),
    ],
)
def test_wrong_images_are_refused(engine: Engine, images: np.ndarray, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        engine(images)


def test_many_threads_may_call(engine: Engine) -> None:
    x = normalised(pixels(8))
    wanted, wrong = engine(x).logits, []

    def call(index: int) -> None:
        for _ in range(20):
            part = engine(x[index : index + 1 + index % 3]).logits
            wrong.append(not np.allclose(part, wanted[index : index + 1 + index % 3], atol=1e-5))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 120 and not any(wrong)


def test_skipped_units_take_no_time_and_move_nothing() -> None:
    """The cost of a call follows the paths: with all blocks skipped it is that of stem, routers and head."""
    plan = plans.routed_resnet(6, (16,), seed=1)
    last = [op["bias"] for step in plan.steps for op in step.get("ops", []) if op["op"] == "linear"][1:-1:2]
    for name in last:
        plan.tensors[name] = np.array([1e9, 0], dtype=np.float32)
    x = normalised(pixels(2))
    skipping = Engine(plan, precision="float32", num_threads=1)
    assert (skipping(x).options == 0).all()
    # What the skipped branches hold cannot matter, not even numbers that spoil everything.
    for step in plan.steps:
        for option in step.get("options", []):
            for op in option["ops"]:
                plan.tensors[op["weight"]] = np.full_like(plan.tensors[op["weight"]], 3e38)
    np.testing.assert_array_equal(
        Engine(plan, precision="float32", num_threads=1)(x).logits, skipping(x).logits
    )


def test_memory_is_stated_and_kept(engine: Engine) -> None:
    stated = engine.memory(32, 32)
    assert stated["weights"] > 0 and 100_000 < stated["per_image"] < 1_000_000
    x = normalised(pixels(4))
    for _ in range(200):
        engine(x)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2000):
        engine(x[:1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"num_threads": 0}, "num_threads must be from 1"),
        ({"precision": "float16"}, "precision must be auto, float32 or bfloat16"),
        ({"isa": "vax"}, "cannot run precision"),
    ],
)
def test_wrong_settings_are_refused(settings_: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Engine(plans.routed_resnet(1, (16,)), **settings_)  # type: ignore[arg-type]


def exits_plan() -> Plan:
    """Return a plan with two exits whose scores are the three channels' means, and other temperatures."""
    maker = plans.Maker()
    scores = maker.op("gap", **{"in": 0})
    for threshold, temperature in ((0.99, 0.5), (0.6, 4.0)):
        leave = {"logits": scores, "criterion": "confidence", "threshold": threshold}
        maker.steps.append({"exit": leave | {"temperature": temperature}})
    maker.steps.append({"exit": {"logits": scores, "criterion": "confidence", "threshold": 0.9}})
    return dataclasses.replace(maker.plan(scores, 4), temperature=0.25)


def test_probabilities_are_those_of_the_exit_that_was_taken(tmp_path: Path) -> None:
    plans.write(exits_plan(), tmp_path / "a.plan")
    engine = Engine.load(tmp_path / "a.plan", precision="float32")
    scores = np.array([[3.0, 0, 0], [1.0, 0, 0], [2.0, 0, -99], [0.1, 0, 0]], np.float32)
    output = engine(np.tile(scores[:, :, None, None], (1, 1, 4, 4)))
    assert output.exits.tolist() == [0, 3, 1, 3]
    temperatures = np.array([0.5, 4.0, 1.0, 0.25])[output.exits]
    np.testing.assert_array_equal(output.temperatures, temperatures.astype(np.float32))
    shares = np.exp(output.logits / temperatures[:, None])
    np.testing.assert_allclose(output.probabilities, shares / shares.sum(axis=1, keepdims=True), rtol=1e-5)
    assert output.probabilities.dtype == np.float32
    assert engine(np.zeros((0, 3, 4, 4), np.float32)).probabilities.shape == (0, 3)


def test_probabilities_of_large_scores_are_finite(engine: Engine) -> None:
    output = dataclasses.replace(engine(pixels(2)), logits=np.array([[3e38, 0], [-3e38, 3e38]], np.float32))
    np.testing.assert_array_equal(output.probabilities, [[1, 0], [0, 1]])


@pytest.mark.parametrize("temperature", [0, -1, "1", None, True, 1e39, [1]])
def test_a_temperature_is_a_number_above_0(temperature: object, tmp_path: Path) -> None:
    plans.write(dataclasses.replace(exits_plan(), temperature=temperature), tmp_path / "a.plan")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="temperature must be a number above 0"):
        Engine.load(tmp_path / "a.plan")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.longdouble, ">f4"])
def test_floats_of_any_precision_and_order(engine: Engine, dtype: object) -> None:
    x = normalised(pixels(3)).astype(np.float16)
    wanted = engine(x.astype(np.float32))
    np.testing.assert_array_equal(engine(x.astype(dtype)).logits, wanted.logits)
    np.testing.assert_array_equal(engine(x.tolist()).logits, wanted.logits)  # type: ignore[arg-type]


def test_bytes_that_are_not_contiguous(engine: Engine) -> None:
    x = pixels(6)
    np.testing.assert_array_equal(engine(x[::2, :, ::-1]).logits, engine(x[::2, :, ::-1].copy()).logits)
    planes = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(engine(planes.transpose(0, 2, 3, 1)).logits, engine(x).logits)
