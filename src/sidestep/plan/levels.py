"""Budgets in plans: what each costs, how accurate it is, where images leave or how gates decide for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from sidestep.errors import ExecutionError
from sidestep.plan.format import KEY
from sidestep.routing.dial import DialledRouter, DialLevel, frontier_from
from sidestep.routing.router import Router


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


AnyLevel = TypeVar("AnyLevel", Level, DialLevel)


def rising(levels: Sequence[AnyLevel]) -> list[AnyLevel]:
    """Return the levels that are worth their cost, each dearer and more accurate than the one before."""
    kept: list[AnyLevel] = []
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
    document = _document(content)
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


def on_top_of(router: Router | None, levels: Sequence[DialLevel]) -> list[DialLevel]:
    """Return budgets of gates with biases on top of those that a router has already.

    Args:
        router: of the network.
        levels: whose biases are on top of what was trained.
    """
    if not isinstance(router, DialledRouter):
        return list(levels)
    own = router.biases[:, -1].tolist()
    return [
        replace(level, biases=[bias - mine for bias, mine in zip(level.biases, own, strict=True)])
        for level in levels
    ]


def dial_in(content: bytes) -> list[DialLevel]:
    """Return the budgets of gates in a plan file, biases on top of its own; none where it has one budget.

    Args:
        content: of a file that was read as a plan before.

    Raises:
        ExecutionError: for budgets that do not fit the plan.
    """
    document = _document(content)
    if not document.get("dial"):
        return []
    known = {"full_macs": document["cost"]["full_macs"], "levels": document["dial"]}
    return frontier_from(known, sum("choose" in step for step in document["steps"])).levels


def _document(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    document: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return document


_WRONG = (
    "the plan's budgets must have macs, accuracy, and numbers for every exit, as docs/plan.md says, and they "
    "have not; export the run again"
)
