"""The table of operations: complete in tests and documentation, and strict about every type of field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import byte_plans
import literal
import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan, PlanError
from sidestep_engine._engine import operations

FORMAT = Path(__file__).parents[2] / "docs" / "plan.md"


def ops_of(plan: Plan) -> list[dict[str, Any]]:
    blocks = [block for step in plan.steps for block in [step, *step.get("options", [])]]
    return [op for block in blocks for op in block.get("ops", [])]


def test_one_plan_has_every_operation_and_agrees_with_numpy() -> None:
    plan = plans.every_kind()
    of_bytes = {op["op"] for op in ops_of(byte_plans.every_byte_kind())}
    assert {op["op"] for op in ops_of(plan)} | of_bytes == set(operations())
    x = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    output = Engine(plan, precision="float32", num_threads=1)(x)
    scores, options, exits = literal.run(plan, x)
    np.testing.assert_allclose(output.logits, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.options, options)
    np.testing.assert_array_equal(output.exits, exits)


def test_the_format_names_every_operation_and_its_fields() -> None:
    rows = re.findall(
        r"^\| ([a-z_, ]+?)(?: \(\d\))? \| ((?:in|out)\b[^|]*) \|", FORMAT.read_text(), re.MULTILINE
    )
    written = {name: fields for names, fields in rows for name in names.split(", ")}
    assert set(written) == set(operations())
    for name, fields in operations().items():
        # The slope is written down once, for all operations that have one.
        missing = {field for field in fields if not re.search(rf"\b{field}\b", written[name])} - {"slope"}
        assert not missing, (name, missing)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "text as a stride": ("conv", {"stride": "x"}, "stride of at least 1, a whole number .*, got 'x'"),
    "a stride with a fraction": ("conv", {"stride": 1.5}, "got 1.5"),
    "true as a stride": ("conv", {"stride": True}, "got true"),
    "no groups": ("conv", {"groups": None}, "groups of at least 1, .* got nothing"),
    "a negative padding": ("max_pool", {"padding": -1}, "padding of at least 0"),
    "a wide padding": ("max_pool", {"padding": 2}, "pads by more than half its kernel"),
    "a number as a flag": ("add", {"relu": 1}, "must have true or false as its relu, got 1"),
    "text as a slope": ("relu", {"slope": "x"}, "must have a number as its slope, got 'x'"),
    "a huge number": ("vaffine", {"mul": 1e39}, "must have a number as its mul, got 1e\\+39"),
    "no number": ("vaffine", {"add": None}, "must have a number as its add, got nothing"),
    "true as a value": ("gap", {"in": True}, "must have whole numbers as its in, got true"),
    "a list as a value": ("gap", {"in": [1]}, "must have whole numbers as its in, got a list"),
    "one value of a pair": ("add", {"in": 1}, "must have a list as its in, got 1"),
    "three values of a pair": ("vmul", {"in": [1, 1, 1]}, "has 3 inputs, it needs 2"),
    "no value in a list": ("concat", {"in": []}, "has 0 inputs"),
    "no indices": ("vgather", {"indices": None}, "must have a list as its indices"),
    "an index beyond": ("vgather", {"indices": [0, 2]}, "reads entry 2 of 2"),
    "no bias": ("affine", {"bias": None}, "lacks a tensor, its bias"),
    "an unknown bias": ("linear", {"bias": 3}, "tensor 3, that is not in the plan"),
    "a weight as a bias": ("linear", {"bias": "w0"}, "bias that does not fit its weight"),
    "an unknown function": ("vmap", {"function": "sin"}, "function must be one of relu, .*, got 'sin'"),
    "a negative residual": ("conv", {"residual": -1}, "needs value -1"),
    "neither size nor like": ("resize", {"like": None}, "must have a size, or a map to be like"),
    "half a size": ("resize", {"like": None, "size": [4]}, "must have height and width as its size"),
    "no height": ("resize", {"like": None, "size": [0, 4]}, "size of at least 1"),
    "padding twice": ("conv", {"same": True}, "must have no padding where it pads to keep the size"),
    "two ends": ("affine", {"activation": "silu"}, "must end in a relu or in an activation, not both"),
    "an unknown end": ("linear", {"activation": "mish"}, "activation must be one of relu6, .*, got 'mish'"),
    "a number as an end": ("add", {"activation": 6}, "activation must be one of relu6, .*, got 6"),
    "an unknown activation": (
        "activate",
        {"function": "tanh"},
        "function must be one of relu6, .*'tanh'",
    ),
    "no activation": ("activate", {"function": None}, "function must be one of relu6, .*, got nothing"),
    "no part": ("crop", {"size": None}, "must have a size"),
    "a part too large": ("crop", {"size": [5, 4]}, "takes map of 16 x 5 x 4 out of a map of 16 x 4 x 4"),
    "an unknown filter": (
        "resize",
        {"interpolation": "lanczos"},
        "interpolation must be one of bilinear",
    ),
    "a cubic filter": (
        "resize",
        {"antialias": False},
        "must antialias where its interpolation",
    ),
    "smooth corners": ("resize", {"align_corners": True}, "must not align corners where it antialiases"),
    "an unknown field": ("vlog_softmax", {"dim": 1}, "has a field 'dim' that is unknown to this engine"),
    "one summand": ("vlogaddexp", {"in": [3]}, "has 1 inputs, it needs 2"),
    "no room for a deviation of 0": ("layer_norm", {"eps": 0}, "must have an eps above 0, got 0"),
    "no heads": ("attention", {"heads": 0}, "heads of at least 1"),
    "heads that do not fit": (
        "attention",
        {"heads": 5},
        "must read queries, keys and values of 5 heads, got",
    ),
    "rows beyond": ("gap", {"first": 3, "rows": 2}, "averages up to row 5 of a map of 32 x 4 x 4"),
    "other channels": ("tokens", {"weight": "w4"}, "has a weight that does not fit a map of 48"),
    "a vector as a map": ("scale", {"in": [9, 9]}, "needs a map, got a vector of 32"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_fields_are_refused_by_name(what: str) -> None:
    kind, fields, said = WRONG[what]
    plan = plans.every_kind()
    op = next(op for op in ops_of(plan) if op["op"] == kind)
    op.update(fields)
    with pytest.raises(PlanError, match=f"op {kind} that makes value {op['out']} .*{said}"):
        Engine(plan, num_threads=1)(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (None, "steps must be a list, got nothing"),
        ([3], "a step must be an object, got 3"),
        ([{"ops": [{"out": 1}]}], "an op must be an object with a name"),
        ([{"ops": {}}], "ops must be a list, got an object"),
        ([{"exit": []}], "an exit must be an object, got a list"),
        ([{"choose": 0, "options": [1], "defines": []}], "an option must be an object"),
        ([{"ops": [{"op": "\ud800"}]}], "must be Unicode text"),
        ([{"ops": {1, 2}}], "steps must be JSON, got a set"),
    ],
)
def test_steps_of_another_form_are_refused(steps: Any, said: str) -> None:
    plan = plans.every_kind()
    object.__setattr__(plan, "steps", steps)
    with pytest.raises(PlanError, match=said):
        Engine(plan)


def test_steps_that_nest_without_end_are_refused() -> None:
    plan = plans.every_kind()
    plan.steps.append(plan.steps)
    with pytest.raises(PlanError, match="must not nest more than 16 deep"):
        Engine(plan)
