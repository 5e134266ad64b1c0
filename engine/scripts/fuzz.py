"""Feeds damaged plans to the loader, guided by coverage, and runs those that it takes; needs atheris.

    python scripts/fuzz.py -max_total_time=600

Every input is a plan with some bytes of its header replaced, or its JSON changed somewhere. Whatever is no
PlanError, a crash of the process included, ends the run and leaves the input behind.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

with atheris.instrument_imports():
    from sidestep_engine import Engine, PlanError

import contextlib

import byte_plans
import numpy as np
import plans

PATH = Path(tempfile.mkdtemp()) / "fuzzed.plan"
NUMBERS = [-1, 0, 1, 2, 3, 7, 16, 2**16, 2**31, 2**32, 2**63, 2**64, 0.5, 1e39]


def seed(plan: plans.Plan) -> tuple[dict[str, Any], bytes]:
    """Return header and body of a plan's file."""
    plans.write(plan, PATH)
    content = PATH.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


# Small plans with every kind of step, on real numbers and on bytes.
SEEDS = [seed(plans.every_kind()), seed(byte_plans.every_byte_kind())]


def change(value: Any, data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """Return a JSON value with one place changed."""
    if isinstance(value, dict) and value and depth < 12:
        name = data.PickValueInList(sorted(value))
        if data.ConsumeProbability() < 0.05:
            return {key: other for key, other in value.items() if key != name}
        return value | {name: change(value[name], data, depth + 1)}
    if isinstance(value, list) and value and depth < 12:
        index = data.ConsumeIntInRange(0, len(value) - 1)
        if data.ConsumeProbability() < 0.05:
            return [*value[:index], *value[index + data.ConsumeIntInRange(0, 1) :], value[index]]
        return [*value[:index], change(value[index], data, depth + 1), *value[index + 1 :]]
    kind = data.ConsumeIntInRange(0, 5)
    if kind < 3 and isinstance(value, int):
        return value + data.ConsumeIntInRange(-4, 4)
    return [data.PickValueInList(NUMBERS), None, [], {}, data.ConsumeUnicode(4), True][kind]


def test_one(raw: bytes) -> None:
    """Load a damaged plan and run it."""
    data = atheris.FuzzedDataProvider(raw)
    given, body = SEEDS[data.ConsumeIntInRange(0, 1)]
    header = dict(given)
    if data.ConsumeBool():
        text = json.loads(header["__metadata__"]["sidestep_plan"])
        for _ in range(data.ConsumeIntInRange(1, 3)):
            text = change(text, data)
        header["__metadata__"] = {"sidestep_plan": json.dumps(text)}
    else:
        header = change(header, data)
    head = bytearray(json.dumps(header).encode())
    if data.ConsumeProbability() < 0.2:
        head[data.ConsumeIntInRange(0, len(head) - 1)] = data.ConsumeIntInRange(0, 255)
    PATH.write_bytes(len(head).to_bytes(8, "little") + bytes(head) + body)
    with contextlib.suppress(PlanError):
        Engine.load(PATH, num_threads=1)(np.zeros((1, 3, 8, 8), np.float32))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
