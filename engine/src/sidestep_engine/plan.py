"""Plans: safetensors files that say what to run. `docs/plan.md` of sidestep specifies the format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sidestep_engine._engine import NEWEST_VERSION, PlanError

KEY = "sidestep_plan"

_MOST_HEADER_BYTES = 100_000_000
_MOST = 3e38
# Types of tensors by their names in files, and the version of plans that they came with.
_TYPES: dict[str, tuple[np.dtype[Any], int]] = {
    "F32": (np.dtype("<f4"), 1),
    "I8": (np.dtype(np.int8), 3),
    "U8": (np.dtype(np.uint8), 3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a plan file holds.

    Attributes:
        steps: as in the file; engines check them.
        output: value that holds the class scores.
        temperature: by which the scores of an image that stayed to the end are divided before they become
            probabilities.
        channels: of the images.
        size: height and width that the network was trained on.
        mean: of the pixels in [0, 1], by channel.
        std: of the pixels in [0, 1], by channel.
        classes: names, may be empty.
        cost: the price list of the network, may be empty.
        about: what the exporter says about the network.
        tensors: float32 arrays by name; weights and tables of bytes are int8 and uint8.
        version: of the format.
        levels: budgets that can be asked for in a call, rising; each with `macs`, and with `thresholds` of
            all exits or `biases` of all choices.
    """

    steps: list[Any]
    output: int
    channels: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    classes: list[str]
    cost: dict[str, Any]
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]
    temperature: float = 1.0
    version: int = NEWEST_VERSION
    levels: list[dict[str, Any]] = field(default_factory=list)

    def level_within(self, budget: float) -> dict[str, Any]:
        """Return the dearest level that costs no more than a budget.

        Args:
            budget: largest mean MACs per image, as a fraction of the full network's.

        Raises:
            PlanError: for a plan without levels, or a budget below all of them.
        """
        if not self.levels:
            raise PlanError(
                "the plan has one budget, and a call asks for another; draw the run's curve with "
                "`sidestep curve`, and export it again"
            )
        full = self.cost["full_macs"]
        # A budget that a table has printed is a rounded one.
        within = [level for level in self.levels if level["macs"] <= (budget + 1e-4) * full]
        if not within:
            least = self.levels[0]["macs"] / full
            raise PlanError(f"budget must be at least {least:.4f}, the plan's smallest, got {budget}")
        return within[-1]


def read_plan(path: str | Path) -> Plan:
    """Return what a plan file holds.

    Raises:
        PlanError: when the file is no plan, is damaged, or is of another version.
        OSError: when it cannot be read.
    """
    try:
        return parse_plan(np.fromfile(path, dtype=np.uint8))
    except PlanError as error:
        raise PlanError(f"plan {path} cannot be read: {error}") from None


def parse_plan(content: bytes | np.ndarray) -> Plan:
    """Return what the bytes of a plan file hold.

    Raises:
        PlanError: when they are no plan, are damaged, or are of another version.
    """
    try:
        header, body = _split(np.frombuffer(content, dtype=np.uint8))
        plan = _loads(_field(_field(header, "__metadata__", dict), KEY, str))
        version: Any = plan.get("version")
        if not _whole(version) or not 1 <= version <= NEWEST_VERSION:
            known = f"this engine reads versions 1 to {NEWEST_VERSION}, and a newer one may know it"
            raise PlanError(f"it has version {version!r} and {known}")
        tensors = {
            name: _tensor(name, entry, body, version)
            for name, entry in header.items()
            if name != "__metadata__"
        }
        return _plan(plan, tensors)
    except PlanError as error:
        raise PlanError(f"{error}; export the run again") from None


def _plan(plan: dict[str, Any], tensors: dict[str, np.ndarray]) -> Plan:
    images = _field(plan, "input", dict)
    size = _field(images, "size", list)
    if len(size) != 2 or not all(_whole(side) and side > 0 for side in size):
        raise PlanError(f"size must be height and width, got {size!r}")
    classes = plan.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise PlanError("classes must be a list of names")
    temperature = plan.get("temperature", 1.0)
    if not _number(temperature) or not 0 < temperature <= _MOST:
        raise PlanError(f"temperature must be a number above 0, got {temperature!r}")
    return Plan(
        steps=_field(plan, "steps", list),
        output=_field(plan, "output", int),
        channels=_field(images, "channels", int),
        size=(size[0], size[1]),
        mean=_numbers(images, "mean"),
        std=_numbers(images, "std"),
        classes=classes,
        cost=plan.get("cost") or {},
        about=plan.get("about") or {},
        tensors=tensors,
        temperature=float(temperature),
        version=plan["version"],
        levels=_levels(plan),
    )


def _levels(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the budgets in a plan: those of its exits, or those of its choices."""
    steps = [step for step in plan["steps"] if isinstance(step, dict)]
    exits, choices = (sum(name in step for step in steps) for name in ("exit", "choose"))
    records = (("budgets", "thresholds", exits), ("dial", "biases", choices))
    found: list[dict[str, Any]] = []
    for record, name, count in records:
        levels = plan.get(record) or []
        if not levels:
            continue
        if not isinstance(levels, list) or not all(_is_level(level, name, count) for level in levels):
            raise PlanError(f"{record} must be a list of objects with macs and {count} {name}, all numbers")
        found = [{"macs": level["macs"], name: level[name]} for level in levels]
    if found:
        full = _field(_field(plan, "cost", dict), "full_macs", float)
        if not full > 0:
            raise PlanError(f"full_macs must be above 0, got {full}")
    return sorted(found, key=lambda level: float(level["macs"]))


def _is_level(level: Any, name: str, count: int) -> bool:
    return (
        isinstance(level, dict)
        and isinstance(level.get(name), list)
        and len(level[name]) == count
        and all(_number(value) and abs(value) <= _MOST for value in (level.get("macs"), *level[name]))
    )


def _split(data: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Return the header of a safetensors file and the bytes behind it."""
    if data.size < 8:
        raise PlanError(f"it has {data.size} bytes, fewer than any safetensors file")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(data.size - 8, _MOST_HEADER_BYTES):
        raise PlanError(f"its header of {length} bytes is longer than the file")
    return _loads(data[8 : 8 + length].tobytes()), data[8 + length :]


def _loads(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"its JSON does not parse ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise PlanError("its JSON must be an object")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _tensor(name: str, entry: Any, body: np.ndarray, version: int) -> np.ndarray:
    """Return a tensor of the file, whose place and size are checked against the file's."""
    written = entry.get("dtype") if isinstance(entry, dict) else None
    kind, since = _TYPES.get(written if isinstance(written, str) else "", (None, 0))
    if kind is None or version < since:
        others = ", int8 or uint8" if version >= 3 else ""
        raise PlanError(f"tensor {name!r} must be float32{others}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not all(_whole(side) and side >= 0 for side in shape) or len(shape) > 4:
        raise PlanError(f"tensor {name!r} must have a shape of at most four sides, got {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_whole(offset) for offset in offsets):
        raise PlanError(f"tensor {name!r} must have two offsets, got {offsets!r}")
    begin, end = offsets
    if not 0 <= begin <= end <= body.size or end - begin != kind.itemsize * math.prod(shape):
        raise PlanError(f"tensor {name!r} must lie inside of the file, at {shape} {kind.name}, got {offsets}")
    return np.frombuffer(body[begin:end].tobytes(), dtype=kind).reshape(shape)


def _field(values: dict[str, Any], name: str, kind: type) -> Any:
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _numbers(values: dict[str, Any], name: str) -> list[float]:
    numbers = _field(values, name, list)
    if not all(_number(number) for number in numbers):
        raise PlanError(f"{name} must be a list of numbers")
    return [float(number) for number in numbers]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
