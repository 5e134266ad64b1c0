"""Plan files: what is read, and that nothing else is."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidestep_engine import Engine, Plan, PlanError, read_plan


@pytest.fixture
def plan() -> Plan:
    return plans.routed_resnet(1, (16, 32), dim=8)


def test_a_file_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    plans.write(plan, path)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(Engine.load(path)(x).logits, Engine(plan)(x).logits)
    assert read_plan(path).size == (32, 32)


@pytest.mark.parametrize("version", [0, 6, 2**70, 1.0, True, "2", None])
def test_another_version_is_refused(version: Any, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    plans.write(plan, path, version="none" if version is None else version)
    with pytest.raises(PlanError, match=r"has version .* and this engine reads versions 1 to 5, and a newer"):
        Engine.load(path)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("conv", "activation", "silu"),
        ("conv", "same", False),
        ("resize", "antialias", True),
        ("resize", "interpolation", "bilinear"),
    ],
)
def test_plans_of_version_1_have_no_fields_that_its_engines_would_pass_over(
    kind: str, field: str, value: Any, tmp_path: Path
) -> None:
    plan, path = plans.routed_resnet(1, (16,), dim=4), tmp_path / "a.plan"
    plan.steps.insert(0, {"ops": [{"op": "resize", "in": 0, "out": 900, "size": [4, 4]}]})
    plans.write(plan, path, version=1)
    Engine.load(path)
    _first(plan, kind)[field] = value
    plans.write(plan, path, version=1)
    with pytest.raises(PlanError, match=f"has a field '{field}', which plans of version 1 lack"):
        Engine.load(path)


def test_fields_that_nobody_knows_are_refused_from_version_2_on(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    _first(plan, "conv")["mood"] = "good"
    plans.write(plan, path, version=1)
    Engine.load(path)
    plans.write(plan, path, version=2)
    with pytest.raises(PlanError, match=r"op conv .* has a field 'mood' that is unknown to this engine"):
        Engine.load(path)


def test_truncated_files_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    plans.write(plan, path)
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(PlanError, match="cannot be read"):
            Engine.load(path)


def _first(plan: Plan, kind: str) -> dict[str, Any]:
    for step in plan.steps:
        for ops in [step.get("ops", []), *[option["ops"] for option in step.get("options", [])]]:
            for op in ops:
                if op["op"] == kind:
                    return op  # type: ignore[no-any-return]
    raise AssertionError(kind)


def _choice(plan: Plan) -> dict[str, Any]:
    return next(step for step in plan.steps if "choose" in step)  # type: ignore[no-any-return]


def _set(name: str, index: Any, value: float) -> Callable[[Plan], None]:
    def damage(plan: Plan) -> None:
        plan.tensors[_first(plan, "conv")[name]][index] = value

    return damage


DAMAGE: dict[str, tuple[Callable[[Plan], Any], str]] = {
    "a cycle": (lambda p: _first(p, "conv").update({"in": 999_999}), "which nothing before it makes"),
    "a value of its own": (
        lambda p: _first(p, "gap").update({"in": _first(p, "gap")["out"]}),
        "nothing before it",
    ),
    "made twice": (lambda p: _first(p, "gap").update(out=1), "made twice"),
    "the image made": (lambda p: _first(p, "conv").update(out=0), "values must be in"),
    "a huge value": (lambda p: _first(p, "conv").update(out=2**62), "a value must be a whole number"),
    "a negative value": (lambda p: _first(p, "conv").update({"in": -1}), "nothing before it"),
    "NaN": (_set("weight", (0, 0, 0, 0), float("nan")), "must be finite"),
    "infinity": (_set("bias", 0, float("inf")), "must be finite"),
    "no stride": (lambda p: _first(p, "conv").update(stride=0), "stride of at least 1"),
    "a huge stride": (lambda p: _first(p, "pad").update(before=2**40), "whole number"),
    "many channels": (lambda p: _first(p, "pad").update(before=60_000), "options of one choice end in"),
    "padding": (lambda p: _first(p, "conv").update(padding=9), "pads by its kernel"),
    "groups": (lambda p: _first(p, "conv").update(groups=5), "groups that do not divide"),
    "no weight": (lambda p: _first(p, "conv").pop("weight"), "lacks a tensor"),
    "an unknown tensor": (lambda p: _first(p, "conv").update(weight="?"), "not in the plan"),
    "a wrong tensor": (
        lambda p: _first(p, "conv").update(weight=_first(p, "linear")["weight"]),
        "4 dimensions",
    ),
    "an unknown op": (lambda p: _first(p, "conv").update(op="copy"), "unknown to this engine"),
    "no option": (lambda p: _choice(p).update(options=[]), "must have options"),
    "results": (lambda p: _choice(p)["options"][0].update(results=[]), "must have 1 results"),
    "a vector as a map": (
        lambda p: _choice(p)["options"][0].update(results=[_choice(p)["choose"]]),
        "end in a",
    ),
    "too few scores": (
        lambda p: _choice(p)["options"].append(_choice(p)["options"][0]),
        "twice|as many scores",
    ),
    "output": (lambda p: object.__setattr__(p, "output", 1), "must be a vector"),
    "std": (lambda p: object.__setattr__(p, "std", [0.0] * 3), "std must be finite and not 0"),
    "mean": (lambda p: object.__setattr__(p, "mean", [0.5]), "one number for every channel"),
    "steps": (lambda p: p.steps.append({"jump": 0}), "must have ops, choose or exit"),
    "an exit": (
        lambda p: p.steps.append({"exit": {"logits": p.output, "criterion": "mood", "threshold": 1}}),
        "criterion must be one of",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_plans_are_refused(plan: Plan, what: str) -> None:
    damage, said = DAMAGE[what]
    damage(plan)
    with pytest.raises(PlanError, match=said):
        Engine(plan)(np.zeros((1, 3, 32, 32), np.float32))


def test_offsets_outside_of_the_file_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    plans.write(plan, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    for entry in (
        {"data_offsets": [0, 2**70]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [8, 4]},
        {"shape": [2**40, 2**40]},
        {"shape": "all"},
        {"dtype": "F64"},
    ):
        damaged = copy.deepcopy(header)
        damaged[name].update(entry)
        head = json.dumps(damaged).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
        with pytest.raises(PlanError, match=name):
            Engine.load(path)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_damage_is_fatal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte changed anywhere: the plan runs or is refused."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.plan"
    plans.write(plans.routed_resnet(1, (16,), dim=4), path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, length + 40))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(PlanError):
        Engine.load(path, num_threads=1)(np.zeros((1, 3, 32, 32), np.float32))
