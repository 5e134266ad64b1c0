"""What a run did with every image of the test split, as arrays, and how a run folder keeps them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from sidestep.errors import CheckpointError
from sidestep.evaluation.per_image import LEFT, OPTIONS
from sidestep.files import read_safetensors, write_file
from sidestep.routing.exit_rule import ExitRule

Array = NDArray[Any]
# The score of exits, as `evaluate --budget` has it where no other is asked for.
CRITERION = "confidence"
# In paths, of a unit in front of which an image had left.
GONE = 255
_HEAD = "sidestep"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTable:
    """N images, L units of K options, E exits, Q budgets; what a network does not have is empty.

    Attributes:
        labels: (N,) classes.
        predictions: (N,) answers.
        confidences: (N,) probability of the answer.
        paths: (N, L) option of every unit, `GONE` behind the exit at which an image left.
        routers: (N, L) probability with which every router would execute its unit.
        exits: (N,) exit at which an image left.
        macs: (N,) MACs, routers included.
        ms: (N,) milliseconds by the latency book `book`.
        exit_scores: (E, N) confidence of every exit after its temperature.
        exit_predictions: (E, N) answer of every exit.
        exit_macs: (E, N) MACs of every image that leaves there.
        temperatures: (E,) of those scores.
        budgets: (Q,) fractions of the full network's MACs.
        thresholds: (Q, E - 1) that meet them on the validation split.
        option_macs: (L, K) price of every option.
        router_macs: (L,) price of every router.
        head_macs: (E,) price of the heads up to every exit.
        option_ms: (L, K) milliseconds of every option by the latency book.
        head_ms: (E,) milliseconds of the way to every exit.
        units_before: (E,) number of units in front of every exit.
        class_names: of the labels.
        full_macs: of the full network.
        fixed_macs: of stem and head.
        book: name of the latency book, or None.
        fixed_ms: of what every image pays, by that book.
        content: by which the images are known, see `content_of`; None where nobody has noted it.
    """

    labels: Array
    predictions: Array
    confidences: Array
    paths: Array
    routers: Array
    exits: Array
    macs: Array
    ms: Array
    exit_scores: Array
    exit_predictions: Array
    exit_macs: Array
    temperatures: Array
    budgets: Array
    thresholds: Array
    option_macs: Array
    router_macs: Array
    head_macs: Array
    option_ms: Array
    head_ms: Array
    units_before: Array
    class_names: tuple[str, ...]
    full_macs: float
    fixed_macs: float
    book: str | None = None
    fixed_ms: float | None = None
    content: str | None = None

    @property
    def correct(self) -> Array:
        """Return (N,) booleans, whether the answer is right."""
        return np.asarray(self.labels == self.predictions)

    @property
    def executed(self) -> Array:
        """Return (N, L) booleans, whether a unit ran."""
        return np.asarray((self.paths > 0) & (self.paths != GONE))

    @property
    def num_exits(self) -> int:
        """Return the number of early exits, the last included; 0 without."""
        return len(self.exit_scores)

    def path_rows(self) -> Array:
        """Return (N, L or L + 1) what a path is: the options, and where the image left if there are exits."""
        if not len(self.exits):
            return self.paths
        return np.concatenate([self.paths, self.exits[:, np.newaxis].astype(np.uint8)], axis=1)

    def path_texts(self) -> list[str]:
        """Return the path of every image as the table of `evaluate --per-image` writes it."""
        letters = np.full(256, LEFT)
        letters[: len(OPTIONS)] = list(OPTIONS)
        return ["".join(row) for row in letters[self.paths]]

    def leaving(self, thresholds: Array) -> Array:
        """Return the (N,) exit at which every image leaves by (E - 1,) thresholds."""
        reached = self.exit_scores[:-1] >= thresholds[:, np.newaxis]
        last = np.ones((1, reached.shape[1]), dtype=bool)
        return np.asarray(np.concatenate([reached, last]).argmax(axis=0))

    def leaving_by(self, rule: ExitRule) -> ImageTable | None:
        """Return what the same network does where images leave by a rule, or None where this does not say it.

        It does of images that all went to the last exit, by the scores and temperatures that are here. Nobody
        knows their milliseconds.

        Args:
            rule: at which exit an image leaves.
        """
        known = rule.criterion == CRITERION and rule.temperatures == self.temperatures.tolist()
        if not known or self.book is not None or (self.exits != self.num_exits - 1).any():
            return None
        exits, rows = self.leaving(np.array(rule.thresholds)), np.arange(len(self.labels))
        reached = np.arange(self.paths.shape[1]) < self.units_before[exits][:, np.newaxis]
        return replace(
            self,
            exits=exits,
            predictions=self.exit_predictions[exits, rows],
            confidences=self.exit_scores[exits, rows].astype(np.float32),
            macs=self.exit_macs[exits, rows],
            paths=np.where(reached, self.paths, GONE).astype(np.uint8),
        )


_ARRAYS = (
    "labels", "predictions", "confidences", "paths", "routers", "exits", "macs", "ms", "exit_scores",
    "exit_predictions", "exit_macs", "temperatures", "budgets", "thresholds", "option_macs", "router_macs",
    "head_macs", "option_ms", "head_ms", "units_before",
)  # fmt: skip
_VALUES = ("class_names", "full_macs", "fixed_macs", "book", "fixed_ms", "content")


def save_table(path: Path, table: ImageTable, belongs: dict[str, Any]) -> None:
    """Write a table, and what it belongs to.

    Raises:
        OutputError: when it cannot be written.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(table, name))) for name in _ARRAYS}
    head = {name: getattr(table, name) for name in _VALUES} | {"belongs": belongs}
    write_file(path, save(tensors, {_HEAD: json.dumps(head)}), what="table of images")


def read_table(path: Path, belongs: dict[str, Any]) -> ImageTable | None:
    """Return a table that belongs to something, or None where there is none, or one of something else."""
    if not path.is_file():
        return None
    try:
        tensors, texts = read_safetensors(path)
        head = json.loads(texts[_HEAD])
        if head.pop("belongs") != json.loads(json.dumps(belongs)):
            return None
        arrays: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in head.items()
        }
        return ImageTable(**arrays, **values)
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        # Whatever is wrong with it, it can be made again.
        return None


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of the tensors in a file of safetensors, whatever is noted beside them."""
    with path.open("rb") as file:
        # The format: eight bytes say how long the header is, and all behind it is tensors.
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
