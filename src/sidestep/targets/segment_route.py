"""How segments follow each other, as the manifest of their folder says it (docs/segments.md)."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sidestep.evaluation.rivals import installed
from sidestep.plan.levels import Level
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets.freezing import Freezing, without_exits
from sidestep.targets.onnx_graph import OPSET
from sidestep.targets.onnx_segments import value_name
from sidestep.targets.segments import Decision, Segment

FORMAT = 1
# Whose releases the manifest names, as far as they are here.
_MAKERS = ("sidestep", "onnx", "torch")
# What stands for infinity in JSON.
_LARGEST = 3e38


def limits_of(thresholds: Sequence[float], criterion: str, num_classes: int) -> list[float]:
    """Return the largest doubt with which images leave at every exit.

    Args:
        thresholds: least scores.
        criterion: of the scores.
        num_classes: C.
    """
    return [min(max(_limit(float(each), criterion, num_classes), -_LARGEST), _LARGEST) for each in thresholds]


def _limit(threshold: float, criterion: str, num_classes: int) -> float:
    if criterion == "confidence":
        return math.inf if threshold <= 0 else (1 - threshold) / threshold if threshold <= 1 else -1.0
    if criterion == "margin":
        return 1 - threshold
    if criterion == "entropy":
        return (1 - threshold) * math.log(num_classes)
    return -threshold


def route_of(
    segments: Sequence[dict[str, Any]],
    document: dict[str, Any],
    rule: ExitRule | None,
    freezing: Freezing,
    levels: Sequence[Level],
    num_units: int,
) -> dict[str, Any]:
    """Return what the manifest says beside the files.

    Args:
        segments: their entries, in order.
        document: of the plan, or the same without steps.
        rule: where images leave, or None.
        freezing: what is no longer decided.
        levels: budgets of exits.
        num_units: that are decided about, frozen ones included.
    """
    num_classes = len(document["classes"])
    return decided(document, rule, freezing) | {
        "cost": document["cost"],
        "num_units": num_units,
        "segments": list(segments),
        "budgets": [
            {
                "fraction": level.macs / document["cost"]["full_macs"],
                "limits": limits_of_rule(_at(rule, level), freezing, num_classes),
                "accuracy": level.accuracy,
                "macs": level.macs,
                "exit_rates": _rates_of(level, freezing),
            }
            for level in levels
        ],
    }


def decided(document: dict[str, Any], rule: ExitRule | None, freezing: Freezing) -> dict[str, Any]:
    """Return what every export in segments says: of images, of exits, and of what is no longer decided."""
    return {
        "format": FORMAT,
        "input": document["input"],
        "classes": document["classes"],
        "about": document["about"],
        "versions": {name: importlib.metadata.version(name) for name in _MAKERS if installed(name)}
        | {"opset": OPSET},
        "criterion": "" if rule is None else rule.criterion,
        "limits": limits_of_rule(rule, freezing, len(document["classes"])),
        "frozen": _frozen_entry(freezing),
    }


def limits_of_rule(rule: ExitRule | None, freezing: Freezing, num_classes: int) -> list[float]:
    """Return the largest doubt with which images leave by a rule; none at exits that are left out."""
    if rule is None:
        return []
    kept = without_exits(rule, freezing.exits)
    assert kept is not None  # as there is a rule
    return limits_of(kept.thresholds, rule.criterion, num_classes)


def _rates_of(level: Level, freezing: Freezing) -> list[float]:
    """Return the share of images that leave at every exit; those of exits that are left out take the next."""
    found, late = [], 0.0
    for index, rate in enumerate(level.exit_rates):
        late += rate
        found.append(0.0 if index in freezing.exits else late)
        late -= found[-1]
    return found


def _at(rule: ExitRule | None, level: Level) -> ExitRule | None:
    return None if rule is None else replace(rule, thresholds=level.thresholds)


def _frozen_entry(freezing: Freezing) -> dict[str, Any]:
    entry = asdict(freezing)
    return entry | {
        name: {str(key): value for key, value in entry[name].items()}
        for name in ("units", "rates", "exit_rates")
    }


def component_name(number: int, segment: Segment, option: int | None) -> str:
    """Return what a branch of a segment is called."""
    return branch_name(number, option, len(segment.branches))


def branch_name(number: int, option: int | None, num_options: int) -> str:
    """Return what a branch of segment `number` is called, which is what its file is called."""
    if option is None:
        return f"segment_{number}"
    if num_options == 2:
        return f"{'execute' if option else 'skip'}_{number}"
    return f"option_{option}_{number}"


def segment_entry(number: int, segment: Segment, macs: dict[str, int]) -> dict[str, Any]:
    """Return what the manifest says of a segment.

    Args:
        number: of the segment.
        segment: of a plan.
        macs: multiply-adds of every component.
    """
    branches = []
    for branch in segment.branches:
        component = component_name(number, segment, branch.option)
        branches.append(
            {
                "option": branch.option,
                # A branch that computes nothing has no graph.
                "component": component if branch.gives else None,
                "inputs": [value_name(value) for value in branch.reads] if branch.gives else [],
                "outputs": [value_name(value) for value in branch.gives],
                "passes": {value_name(new): value_name(old) for new, old in branch.passes.items()},
                "macs": macs.get(component, 0),
            }
        )
    return {
        "branches": branches,
        "live": [value_name(value) for value in segment.live],
        "fixed_units": {str(unit): option for unit, option in segment.fixed.items()},
        "decision": _decision_entry(segment.decision),
    }


def _decision_entry(decision: Decision) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": decision.kind,
        "index": decision.index,
        "value": value_name(decision.value),
    }
    if decision.logits is not None:
        entry |= {"logits": value_name(decision.logits), "temperature": decision.temperature}
    return entry
