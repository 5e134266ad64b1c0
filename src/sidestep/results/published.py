"""The field's published accuracies and costs, brought to one unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sidestep.errors import RecipeError

_TABLE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPoint:
    """One network of a paper.

    Attributes:
        system: name of the method, or of a static network.
        backbone: the network it makes dynamic.
        dataset: "cifar10", "cifar100" or "imagenet".
        accuracy: top-1 in percent, as printed.
        cost: per image in 10^9, in `unit`.
        unit: "MACs", or "FLOPs" of 2 x MACs.
        read: from "text", by pixel from a "figure", from "memory" of the paper, not checked, or "derived"
            from what the text says relative to another network.
        place: table or figure of an ablation; None for what the paper is compared by.
        settings: what a run must have to be compared with it, see `sidestep.results.ledger`.
    """

    system: str
    backbone: str
    dataset: str
    accuracy: float
    cost: float
    unit: Literal["MACs", "FLOPs"]
    read: Literal["text", "figure", "memory", "derived"]
    place: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def gflops(self) -> float:
        """Return the cost in GFLOPs of 2 x MACs, the unit of all our reports."""
        return 2 * self.cost if self.unit == "MACs" else self.cost


def published_points(dataset: str | None = None) -> list[PublishedPoint]:
    """Return the published points of a data set, or all of them.

    Args:
        dataset: "cifar10", "cifar100" or "imagenet".

    Raises:
        RecipeError: when nothing was published on it.
    """
    rows: list[dict[str, Any]] = yaml.safe_load(_TABLE.read_text())
    points = [PublishedPoint(**row) for row in rows]
    known = sorted({point.dataset for point in points})
    if dataset is None:
        return points
    if dataset not in known:
        raise RecipeError(
            f"data set of published numbers must be one of {', '.join(known)}, got {dataset!r}; "
            "or leave it out"
        )
    return [point for point in points if point.dataset == dataset]
