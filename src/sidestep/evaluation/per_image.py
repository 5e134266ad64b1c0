"""What a network did with every image, as a table: what reports, figures and other programs are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sidestep.cost.latency_book import LatencyBook
from sidestep.types import Batch, CostModel, RoutedOutput

# Characters of options in a path; a unit in front of which an image had left has none of its own.
OPTIONS = "0123456789abcdefghijklmnopqrstuvwxyz"
LEFT = "-"


@dataclass(slots=True)
class PerImage:
    """Rows, one per image, in the order in which batches come.

    Args:
        cost: price list of the network.
        latency: its latency book, or None.
    """

    cost: CostModel
    latency: LatencyBook | None = None
    _rows: list[dict[str, list[Any]]] = field(default_factory=list)

    def add(self, output: RoutedOutput, batch: Batch) -> None:
        """Note what was said of a batch."""
        decisions, labels = output.decisions, batch.labels
        said = output.logits.argmax(dim=1)
        certain = output.probabilities.gather(1, said.unsqueeze(1))[:, 0]
        cost = self.cost.per_sample(decisions).double()
        exits, each = decisions.exits, output.exit_logits
        count = len(labels)
        nothing: list[None] = [None] * count
        self._rows.append(
            {
                "label": labels.tolist(),
                "prediction": said.tolist(),
                "correct": (said == labels).tolist(),
                "confidence": certain.tolist(),
                "path": _paths(decisions.weights),
                "executed": decisions.execution().sum(dim=1).tolist(),
                "exit": nothing if exits is None else exits.argmax(dim=1).tolist(),
                "macs": cost.tolist(),
                "ms": nothing
                if self.latency is None
                else self.latency.prices.per_sample(decisions).double().tolist(),
                "routers": nothing if decisions.logits is None else _execute(decisions.logits).tolist(),
                "exit_predictions": nothing if each is None else each.argmax(dim=2).T.tolist(),
                "exit_confidences": nothing
                if each is None
                else each.float().softmax(dim=2).amax(dim=2).T.tolist(),
            }
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns by name, the number of the image in front."""
        names = list(self._rows[0]) if self._rows else []
        joined = {name: [value for rows in self._rows for value in rows[name]] for name in names}
        count = len(next(iter(joined.values()), []))
        return {"image": list(range(count)), **joined}

    def as_parquet(self, class_names: Sequence[str]) -> bytes:
        """Return the table as a Parquet file, in which labels and predictions know the names of classes.

        Args:
            class_names: in the order of the classes.
        """
        from io import BytesIO

        from datasets import ClassLabel, Dataset, Features, Sequence, Value
        from datasets.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        kinds = {
            "image": Value("int64"),
            "label": ClassLabel(names=_distinct(class_names)),
            "prediction": ClassLabel(names=_distinct(class_names)),
            "correct": Value("bool"),
            "confidence": Value("float32"),
            "path": Value("string"),
            "executed": Value("float32"),
            "exit": Value("int64"),
            "macs": Value("float64"),
            "ms": Value("float64"),
            "routers": Sequence(Value("float32")),
            "exit_predictions": Sequence(ClassLabel(names=_distinct(class_names))),
            "exit_confidences": Sequence(Value("float32")),
        }
        buffer = BytesIO()
        # A bar for what is done at once would be noise among the lines that commands say.
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            Dataset.from_dict(self.columns(), features=Features(kinds)).to_parquet(buffer)
        finally:
            if shown:
                enable_progress_bars()
        return buffer.getvalue()


def _execute(logits: Tensor) -> Tensor:
    """Return the (B, L) probability of all options but the cheapest, for (B, L, K) logits."""
    return 1 - logits.float().softmax(dim=2)[..., 0]


def _paths(weights: Tensor) -> list[str]:
    """Return the option of every unit as a character, for (B, L, K) weights."""
    if not weights.shape[1]:
        return [""] * len(weights)
    options = weights.argmax(dim=2)
    left = weights.sum(dim=2) == 0
    rows = torch.where(left, len(OPTIONS), options).tolist()
    return ["".join((OPTIONS + LEFT)[option] for option in row) for row in rows]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of which none occurs twice, as the format demands; the later ones get their number."""
    taken: set[str] = set()
    found = []
    for number, name in enumerate(names):
        found.append(f"{name} ({number})" if name in taken else name)
        taken.add(name)
    return found
