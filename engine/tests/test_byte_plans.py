"""Plans with maps of bytes: files, versions, what is refused, and how much memory they take."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import byte_plans
import numpy as np
import plans
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep_engine import Engine, Plan, PlanError


def ops_of(plan: Plan) -> list[dict[str, Any]]:
    blocks = [block for step in plan.steps for block in [step, *step.get("options", [])]]
    return [op for block in blocks for op in block.get("ops", [])]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan, path = byte_plans.every_byte_kind(), tmp_path / "a.plan"
    plans.write(plan, path)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(Engine.load(path)(x).logits, Engine(plan)(x).logits)


@pytest.mark.parametrize("version", [1, 2])
def test_older_plans_have_no_bytes_in_their_files(version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    plans.write(byte_plans.every_byte_kind(), path, version=version)
    with pytest.raises(PlanError, match=r"tensor 'w.*' must be float32; export"):
        Engine.load(path)


def test_older_plans_have_no_fields_of_bytes(tmp_path: Path) -> None:
    plan, path = plans.routed_resnet(1, (16,), dim=4), tmp_path / "a.plan"
    for version in (1, 2):
        plans.write(plan, path, version=version)
        assert not Engine.load(path).quantized
    next(op for op in ops_of(plan) if op["op"] == "conv")["scale"] = 0
    for version in (1, 2):
        plans.write(plan, path, version=version)
        with pytest.raises(PlanError, match=f"has a field 'scale', which plans of version {version} lack"):
            Engine.load(path)


def test_older_plans_have_no_weights_of_int8_for_real_ones(tmp_path: Path) -> None:
    plan, path = byte_plans.every_byte_kind(), tmp_path / "a.plan"
    for version in (3, 4):
        plans.write(plan, path, version=version)
        said = f"has weights of int8 for real ones, which plans of version {version} lack"
        with pytest.raises(PlanError, match=said):
            Engine.load(path)


@pytest.mark.parametrize("count", [1, 5, 16])
@pytest.mark.parametrize("groups", [1, 32])
def test_weights_of_int8_for_real_ones_are_the_numbers_that_they_stand_for(count: int, groups: int) -> None:
    maker = byte_plans.ByteMaker(seed=1)
    x = maker.real_conv8(maker.real_conv8(0, 3, 32, 1), 32, 32, groups=groups, relu=True)
    plan = maker.plan(maker.real_linear8(maker.op("gap", **{"in": x}), 32, 37, relu=True), 8)
    ops, tensors = [], dict(plan.tensors)
    for op in ops_of(plan):
        ops.append(op if "weight" not in op else {**op, "weight_scale": None})
        if "weight" in op:
            weight = plan.tensors[op["weight"]]
            scale = plan.tensors[op["weight_scale"]].reshape(-1, *[1] * (weight.ndim - 1))
            tensors[op["weight"]] = (weight * scale).astype(np.float32)
    real = dataclasses.replace(plan, steps=[{"ops": ops}], tensors=tensors)
    x = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(Engine(plan)(x).logits, Engine(real)(x).logits)


# The operation's kind, which of them, what is changed, and what is said.
WRONG: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "no scale": ("quantize", 0, {"scale": None}, "must have a number as its scale, got nothing"),
    "a scale of 0": ("quantize", 0, {"scale": 0}, "must have a scale from 1e-30 to 1e30"),
    "a negative scale": ("quantize", 0, {"scale": -1.0}, "must have a scale from 1e-30 to 1e30"),
    "a tiny scale": ("affine", 0, {"scale": 1e-38}, "must have a scale from 1e-30 to 1e30"),
    "a zero beyond": ("quantize", 0, {"zero": 256}, "zero of at least 0, a whole number up to 255, got 256"),
    "a zero below": ("quantize", 0, {"zero": -1}, "zero of at least 0"),
    "bytes without a scale": ("affine", 0, {"scale": 0, "zero": 0}, "reads bytes and has no scale"),
    "a zero without a scale": ("add", 0, {"scale": 0, "zero": 3}, "has a zero point and no scale"),
    "numbers with a scale": (
        "conv",
        0,
        {"scale": 1.0},
        "must have a scale, weights of int8 and their weight_scale",
    ),
    "weights of float32": ("conv", 1, {"weight": "w0"}, "weights of int8 and their weight_scale, or none"),
    "no weight_scale": ("conv", 1, {"weight_scale": None}, "weights of int8 and their weight_scale, or none"),
    "too few weight scales": ("linear", 0, {"weight_scale": "w0"}, "has a bias that does not fit its weight"),
    "a residual of numbers": ("conv", 1, {"residual": 1}, "reads a map of bytes and one of real numbers"),
    "a table alone": ("conv", 2, {"inner_scale": None}, "must have a table and an inner_scale, or neither"),
    "a table of weights": ("conv", 2, {"table": "w0"}, "needs a table of 256 numbers of uint8"),
    "a slope": ("conv", 1, {"slope": 0.1}, "ends in what needs a table of them"),
    "an activation": ("affine", 0, {"activation": "silu"}, "ends in what needs a table of them"),
    "a relu with a slope": ("relu", 0, {"slope": 0.1}, "has a slope, which needs a table of them"),
    "no table": ("activate", 0, {"table": None}, "must have a table and a scale, or neither"),
    "numbers that are dequantized": ("dequantize", 0, {"in": 1}, "reads bytes only, got real numbers"),
    "different scales": ("concat", 0, {"in": [2, 3]}, "joins maps of different scales or zero points"),
    "smooth bytes": ("resize", 0, {"antialias": True}, "antialiases, which takes real maps, got bytes"),
    "scales that overflow": ("affine", 0, {"scale": 1e-20}, "has scales that do not fit each other"),
    "weights of bytes": (
        "linear",
        0,
        {"in_scale": 0, "in_zero": 0, "weight_scale": None},
        "must have a scale, weights of int8",
    ),
    "real weights of bytes": (
        "linear",
        1,
        {"weight_scale": None},
        "must have a scale, weights of int8 and their weight_scale",
    ),
    "a weight of bytes": ("affine", 0, {"weight": "w7"}, "needs a weight of float32"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_fields_are_refused_by_name(what: str) -> None:
    kind, index, fields, said = WRONG[what]
    plan = byte_plans.every_byte_kind()
    op = [op for op in ops_of(plan) if op["op"] == kind][index]
    op.update(fields)
    with pytest.raises(PlanError, match=f"op {kind} that makes value {op['out']} .*{said}"):
        Engine(plan, num_threads=1)(np.zeros((1, 3, 8, 8), np.float32))


def test_options_end_in_maps_that_are_held_alike() -> None:
    plan = byte_plans.every_byte_kind()
    options = next(step for step in plan.steps if "choose" in step)["options"]
    options[1]["ops"][0]["zero"] += 1
    with pytest.raises(PlanError, match="options of one choice end in maps that are held differently"):
        Engine(plan)


def test_no_sum_overflows() -> None:
    maker = byte_plans.ByteMaker()
    x = maker.op("pad", **{"in": maker.quantize(0)}, stride=1, before=1, after=7308)
    with pytest.raises(PlanError, match="sums more than 65792 products of int8"):
        Engine(maker.scores(maker.conv8(x, 7312, 1, 3)))


def test_plans_and_memory_are_a_quarter_of_those_of_float32(tmp_path: Path) -> None:
    """Within a tenth: the plan's text, biases and multipliers stay what they are."""
    real, of_bytes = (kind.routed_resnet(2, (64, 128), dim=256) for kind in (plans, byte_plans))
    sizes = []
    for plan in (real, of_bytes):
        plans.write(plan, tmp_path / "a.plan")
        memory = Engine(plan, precision="float32", isa="avx512").memory(32, 32)
        sizes.append(((tmp_path / "a.plan").stat().st_size, memory["weights"], memory["per_image"]))
    for whole, part in zip(*sizes, strict=True):
        assert part <= 1.1 * whole / 4


def memory_of(x: int, maker: plans.Maker) -> int:
    plan = maker.plan(maker.op("gap", **{"in": x}))
    return Engine(plan, precision="float32").memory(64, 64)["per_image"]


def test_a_real_first_convolution_adds_the_image_alone() -> None:
    maker = plans.Maker()
    real = memory_of(maker.conv(maker.conv(0, 3, 32), 32, 32), maker)
    maker = byte_plans.ByteMaker()
    of_bytes = memory_of(maker.conv8(maker.conv8(maker.quantize(0), 3, 32), 32, 32), maker)
    maker = byte_plans.ByteMaker()
    first_is_real = memory_of(maker.conv8(maker.quantize(maker.conv(0, 3, 32)), 32, 32), maker)
    assert of_bytes <= 1.1 * real / 4
    assert first_is_real <= of_bytes + 4 * 4 * 66 * 66


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_damage_is_fatal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte changed anywhere: the plan runs or is refused."""
    path = tmp_path_factory.getbasetemp() / "fuzzed_bytes.plan"
    plans.write(byte_plans.every_byte_kind(), path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, length + 40))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(PlanError):
        Engine.load(path, num_threads=1)(np.zeros((1, 3, 8, 8), np.float32))
