"""Budgets of a network with early exits: what each costs, how accurate it is, where images leave for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sidestep.errors import ExecutionError
from sidestep.plan.format import KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A budget, as `sidestep curve` has measured it on images that nothing was chosen on.

    Attributes:
        macs: mean MACs per image.
        accuracy: top-1, in [0, 1].
        exit_rates: (E) share of images that leave at every exit.
        thresholds: (E - 1) of all exits but the last.
    """

    macs: float
    accuracy: float
    exit_rates: list[float]
    thresholds: list[float]


def rising(levels: Sequence[Level]) -> list[Level]:
    """Return the levels that are worth their cost, each dearer and more accurate than the one before."""
    kept: list[Level] = []
    for level in sorted(levels, key=lambda level: (level.macs, -level.accuracy)):
        if not kept or level.accuracy > kept[-1].accuracy:
            kept.append(level)
    return kept


def in_plan(threshold: float, criterion: str, num_classes: int) -> float:
    """Return the threshold of an exit as plans have it.

    Plans compare the entropy in nats, which falls with certainty, and a rule what it lacks of its largest
    value, as a share of that. JSON has no infinity, which is the threshold where no one leaves.
    """
    if criterion == "entropy":
        threshold = (1 - threshold) * math.log(num_classes)
    return min(max(float(threshold), -3e38), 3e38)


def budget_entries(levels: Sequence[Level], criterion: str, num_classes: int) -> list[dict[str, Any]]:
    """Return levels as a plan's `budgets` has them."""
    return [
        asdict(level) | {"thresholds": [in_plan(each, criterion, num_classes) for each in level.thresholds]}
        for level in levels
    ]


def levels_in(content: bytes) -> list[Level]:
    """Return the levels in a plan file, with thresholds as plans have them; none where it has one budget.

    Args:
        content: of a file that was read as a plan before.

    Raises:
        ExecutionError: for budgets that do not fit the plan.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    document = json.loads(header["__metadata__"][KEY])
    num_exits = sum("exit" in step for step in document["steps"])
    try:
        levels = [Level(**entry) for entry in document.get("budgets", [])]
        fits = [
            len(level.thresholds) == num_exits
            and len(level.exit_rates) == num_exits + 1
            and math.isclose(sum(level.exit_rates), 1, abs_tol=1e-3)
            and all(map(math.isfinite, (level.macs, level.accuracy, *level.thresholds)))
            for level in levels
        ]
    except (TypeError, ValueError) as error:
        raise ExecutionError(_WRONG) from error
    if not all(fits):
        raise ExecutionError(_WRONG)
    return levels


_WRONG = (
    "the plan's budgets must have macs, accuracy, and numbers for every exit, as docs/plan.md says, and they "
    "have not; export the run again"
)
