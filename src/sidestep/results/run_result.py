"""What a finished run folder says about itself, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidestep.errors import CheckpointError
from sidestep.results.kept_curve import KeptCurve, read_exit_curve

BENCH = "bench.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run folder says about itself.

    Attributes:
        folder: its name.
        recipe: resolved recipe as plain values.
        environment: hardware, versions and commit it was trained with.
        reports: best and last checkpoint on the test split.
        epochs: rows of metrics.jsonl.
        bench: what `sidestep bench` last measured, or None.
        exits: what `sidestep curve` last found, or None.
    """

    folder: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    epochs: list[dict[str, Any]]
    bench: dict[str, Any] | None = None
    exits: KeptCurve | None = None

    @property
    def method(self) -> str:
        """Return the name of the method."""
        return str(self.recipe["method"]["name"])

    @property
    def recipe_name(self) -> str:
        """Return the name of the recipe."""
        return str(self.recipe["name"])

    @property
    def network(self) -> str:
        """Return the name of the network."""
        return str(self.recipe["model"]["name"])

    @property
    def gflops(self) -> float:
        """Return the mean cost of an image in the best checkpoint, all exits asked."""
        return float(self.reports["best"]["gflops"])

    @property
    def percent(self) -> float:
        """Return the accuracy of the best checkpoint at that cost, in percent."""
        return 100 * float(self.reports["best"]["accuracy"])

    @property
    def has_exits(self) -> bool:
        """Return whether the network has early exits."""
        return self.reports["best"].get("exit_rates") is not None

    @property
    def savings(self) -> str:
        """Return how the network saves: by skipping units, by early exits, by both, or not at all."""
        skips = self.method != "static" and bool(self.reports["best"].get("keep_rates"))
        words = ["skipping"] * skips + ["exits"] * self.has_exits
        return " and ".join(words) or "nothing"

    @property
    def minutes(self) -> float:
        """Return the wall time of all epochs, validation included."""
        return sum(float(row["seconds"]) for row in self.epochs) / 60

    def milliseconds(self, runtime: str) -> float | None:
        """Return the float32 milliseconds per image of a runtime at the largest batch measured, or None.

        Args:
            runtime: as `BenchRow` has it.
        """
        rows = [] if self.bench is None else self.bench["rows"]
        found = [row for row in rows if row["runtime"] == runtime and row["precision"] == "float32"]
        return max(found, key=lambda row: int(row["batch_size"]))["ms_per_image"] if found else None


def read_result(folder: Path) -> RunResult:
    """Return what a finished run folder holds.

    Raises:
        CheckpointError: when the run has not been trained to its end.
    """
    try:
        return RunResult(
            folder=folder.name,
            recipe=yaml.safe_load((folder / "recipe.yaml").read_text()),
            environment=json.loads((folder / "environment.json").read_text()),
            reports=json.loads((folder / "report.json").read_text()),
            epochs=[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
            bench=json.loads((folder / BENCH).read_text()) if (folder / BENCH).is_file() else None,
            exits=read_exit_curve(folder),
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"run {folder} must be trained to its end, but {Path(error.filename).name} is missing; "
            "finish it with --resume"
        ) from error
