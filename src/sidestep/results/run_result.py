"""What a finished run says about itself, without its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sidestep.errors import CheckpointError, one_line
from sidestep.evaluation.budget_points import BudgetCurve
from sidestep.files import are_numbers
from sidestep.results.kept_curve import BUDGETS, EXITS, KeptCurve, read_budget_curve, read_exit_curve
from sidestep.training.metrics import METRICS, read_metrics

BENCH, REPORT = "bench.json", "report.json"
# Set in a report whose thresholds were solved on either half of the test split, and reported on the other.
HALVES = "by_halves"
# Of a sweep's folder: the runs in it, and how far they are.
STUDY = "study.db"
_RECIPE, _ENVIRONMENT = "recipe.yaml", "environment.json"
Kept = TypeVar("Kept")

# Of a report: what pages cannot do without, and what is no number.
_NEEDED = ("accuracy", "gflops", "fraction_of_full", "executed_mean")
_NO_NUMBERS = ("execution", "decisions", "latency_book", HALVES)
# Long, and on no page.
_LEFT_OUT = "keep_rates_per_class"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What `sidestep bench` found of one way of running the network.

    Attributes:
        runtime: as `BenchRow` has it.
        precision: of weights and features.
        batch_size: images per call.
        ms_per_image: median milliseconds of a call over the batch size.
    """

    runtime: str
    precision: str
    batch_size: int
    ms_per_image: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run says about itself.

    Attributes:
        folder: name of its folder.
        recipe: resolved recipe as plain values, with local files by name alone: pages say what was run, not
            on whose disk.
        environment: hardware, versions and commit it was trained with.
        reports: best and last checkpoint on the test split, without keep rates per class.
        minutes: wall time of all epochs, validation included.
        validation: accuracy in [0, 1] and fraction of the full network's MACs after every epoch that was
            validated.
        timings: what `sidestep bench` last measured; empty if it never did.
        exits: what `sidestep curve` last found, or None.
        budgets: accuracy and cost of a network for all budgets at many of them, or None.
    """

    folder: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    minutes: float
    validation: list[tuple[float, float]]
    timings: list[Timing]
    exits: KeptCurve | None = None
    budgets: BudgetCurve | None = None

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
        members = self.recipe["model"].get("members", [{"method": self.recipe["method"]}])
        chooses = any(member["method"]["name"] != "static" for member in members)
        skips = chooses and bool(self.reports["best"].get("keep_rates"))
        words = ["skipping"] * skips + ["exits"] * self.has_exits
        return " and ".join(words) or "nothing"

    def milliseconds(self, runtime: str) -> float | None:
        """Return the float32 milliseconds per image of a runtime at the largest batch measured, or None.

        Args:
            runtime: as `BenchRow` has it.
        """
        found = [row for row in self.timings if row.runtime == runtime and row.precision == "float32"]
        return max(found, key=lambda row: row.batch_size).ms_per_image if found else None


def read_result(folder: Path) -> RunResult:
    """Return what a finished run folder holds.

    Raises:
        CheckpointError: when the folder is no run's, the run has not been trained to its end, or a file of it
            is damaged.
    """
    if not (folder / _RECIPE).is_file():
        raise CheckpointError(
            f"run {folder} must be a run folder with a {_RECIPE}, and is none; name the folder that "
            "`sidestep train` has written"
        )
    missing = [name for name in (METRICS, _ENVIRONMENT, REPORT) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"run {folder} must be trained to its end, but {missing[-1]} is missing; finish it with --resume"
        )
    epochs = read_metrics(folder / METRICS)
    return RunResult(
        folder=folder.name,
        recipe=_whole(folder / _RECIPE, _recipe),
        environment=_whole(folder / _ENVIRONMENT, _environment),
        reports=_whole(folder / REPORT, _reports),
        minutes=sum(float(row["seconds"]) for row in epochs) / 60,
        validation=[_validation(row["val"]) for row in epochs if row.get("val")],
        timings=_whole(folder / BENCH, _timings) if (folder / BENCH).is_file() else [],
        exits=_whole(folder / EXITS, read_exit_curve) if (folder / EXITS).is_file() else None,
        budgets=_whole(folder / BUDGETS, read_budget_curve) if (folder / BUDGETS).is_file() else None,
    )


def check_kept(folder: Path) -> None:
    """Return if what a run folder keeps of its results is what commands have written.

    Raises:
        CheckpointError: naming a damaged file.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        REPORT: _reports,
        BENCH: _timings,
        EXITS: read_exit_curve,
        BUDGETS: read_budget_curve,
        _ENVIRONMENT: _environment,
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            _whole(folder / name, read)


def _whole(path: Path, read: Callable[[Path], Kept]) -> Kept:
    """Return what a file of a run folder holds, if it is what the run has written."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path} is damaged ({one_line(error)}); restore it, or let the command that wrote it "
            "make it again"
        ) from error


def _recipe(path: Path) -> dict[str, Any]:
    values = without_folders(yaml.safe_load(path.read_bytes()))
    for section in ("method", "model"):
        str(values[section]["name"])
    return dict(values)


def _environment(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_bytes())
    known: dict[str, Any] = {key: dict(values[key]) for key in ("hardware", "versions")}
    return {**known, "commit": values.get("commit", "unknown")}


def _reports(path: Path) -> dict[str, dict[str, Any]]:
    values = json.loads(path.read_bytes())
    for report in (values["best"], values["last"]):
        sum(float(report[name]) for name in _NEEDED)
        wrong = [key for key, value in report.items() if key not in _NO_NUMBERS and not are_numbers(value)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {report[wrong[0]]!r}")
    return {
        name: {key: value for key, value in report.items() if key != _LEFT_OUT}
        for name, report in values.items()
    }


def without_folders(values: Any) -> Any:
    """Return plain values with local files by their names alone.

    >>> without_folders({"init": "/home/me/weights.safetensors", "source": "hfds/uoft-cs/cifar10"})
    {'init': 'weights.safetensors', 'source': 'hfds/uoft-cs/cifar10'}
    """
    if isinstance(values, dict):
        return {key: without_folders(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_folders(value) for value in values]
    if isinstance(values, str) and ("//" in values or values.startswith(("/", "~", "."))):
        return Path(values).name
    return values


def _validation(report: Mapping[str, Any]) -> tuple[float, float]:
    return float(report["accuracy"]), float(report["fraction_of_full"])


def _timings(path: Path) -> list[Timing]:
    names = Timing.__dataclass_fields__
    rows = [Timing(**{name: row[name] for name in names}) for row in json.loads(path.read_bytes())["rows"]]
    if not all(isinstance(row.runtime, str) and isinstance(row.precision, str) for row in rows):
        raise ValueError("a runtime or a precision is no text")
    sum(float(row.ms_per_image) + float(row.batch_size) for row in rows)
    return rows
