"""The field's published accuracies and costs, brought to one unit."""

from __future__ import annotations

from dataclasses import dataclass
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
        read: from "text", by pixel from a "figure", or from "memory" of the paper, not checked.
    """

    system: str
    backbone: str
    dataset: str
    accuracy: float
    cost: float
    unit: Literal["MACs", "FLOPs"]
    read: Literal["text", "figure", "memory"]

    @property
    def gflops(self) -> float:
        """Return the cost in GFLOPs of 2 x MACs, the unit of all our reports."""
        return 2 * self.cost if self.unit == "MACs" else self.cost


def published_points(dataset: str) -> list[PublishedPoint]:
    """Return the published points of a data set.

    Args:
        dataset: "cifar10", "cifar100" or "imagenet".

    Raises:
        RecipeError: when nothing was published on it.
    """
    rows: list[dict[str, Any]] = yaml.safe_load(_TABLE.read_text())
    points = [PublishedPoint(**row) for row in rows]
    known = sorted({point.dataset for point in points})
    if dataset not in known:
        raise RecipeError(f"published must be one of {', '.join(known)}, got {dataset!r}; or leave it out")
    return [point for point in points if point.dataset == dataset]
