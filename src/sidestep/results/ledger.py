"""The ledger: what was published, what our runs reach beside it, and what has not been run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from sidestep.results.markdown import table
from sidestep.results.page_data import read_results
from sidestep.results.published import PublishedPoint
from sidestep.results.run_groups import with_deviation
from sidestep.results.run_result import RunResult

# A run stands beside a published network when its cost differs by at most this share.
COST_TOLERANCE = 0.1
_COLUMNS = ("system", "network", "data", "place", "published %", "GFLOPs")
_METHODS = {
    "ConvNet-AIG": "convnet_aig",
    "CoDiNet": "codinet",
    "SkipNet": "skipnet",
    "BlockDrop": "blockdrop",
    "ACT": "act",
    "SACT": "sact",
    "RANet": "ranet",
    "MSDNet": "msdnet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """A published network and our runs of it.

    Attributes:
        point: what was published.
        runs: ours at that cost, best checkpoints on the test split.
        nearest: where there are none, our run of the same method and network that comes nearest in cost.
    """

    point: PublishedPoint
    runs: tuple[RunResult, ...]
    nearest: RunResult | None

    @property
    def percent(self) -> float | None:
        """Return the mean accuracy of the runs in percent, or None."""
        return mean(run.percent for run in self.runs) if self.runs else None

    @property
    def gflops(self) -> float | None:
        """Return the mean cost of the runs, or None."""
        return mean(run.gflops for run in self.runs) if self.runs else None


def ledger(points: Sequence[PublishedPoint], folders: Sequence[Path]) -> list[LedgerRow]:
    """Return every published network with the runs that stand beside it.

    Args:
        points: what was published.
        folders: finished run folders, and compact files of results pages.
    """
    results = read_results(folders)
    rows = []
    for point in points:
        same = [result for result in results if is_run_of(result, point)]
        near = [run for run in same if abs(run.gflops - point.gflops) <= COST_TOLERANCE * point.gflops]
        rest = sorted(same, key=lambda run: abs(run.gflops - point.gflops))
        rows.append(LedgerRow(point=point, runs=tuple(near), nearest=rest[0] if rest and not near else None))
    return rows


def ledger_page(rows: Sequence[LedgerRow]) -> str:
    """Return the ledger in markdown: what has runs, and what has none."""
    run, missing = [row for row in rows if row.runs], [row for row in rows if not row.runs]
    lines = [
        "# Ledger",
        "",
        f"Published numbers beside ours: {len(run)} of {len(rows)} have runs whose cost is within "
        f"{COST_TOLERANCE:.0%}. Best epoch by the validation split,",
        "test accuracy, routers included, GFLOPs are 2 x MACs; of several runs mean and deviation.",
        "",
        *table(
            [*_COLUMNS, "ours %", "GFLOPs", "seeds", "recipes", "commits"],
            ([*_published(row.point), *_ours(row)] for row in run),
        ),
        "",
        "## Without a run",
        "",
        *table([*_COLUMNS, "nearest run"], ([*_published(row.point), _nearest(row)] for row in missing)),
    ]
    return "\n".join(lines) + "\n"


def _published(point: PublishedPoint) -> list[str]:
    certainty = "" if point.read == "text" else f" ({point.read})"
    return [
        point.system,
        point.backbone,
        point.dataset,
        point.place or "",
        f"{point.accuracy:.2f}{certainty}",
        f"{point.gflops:.3f}",
    ]


def _ours(row: LedgerRow) -> list[str]:
    seeds = sorted({int(run.recipe["training"]["seed"]) for run in row.runs})
    return [
        with_deviation([run.percent for run in row.runs], 2),
        with_deviation([run.gflops for run in row.runs], 3),
        ", ".join(map(str, seeds)),
        ", ".join(sorted({run.recipe_name for run in row.runs})),
        ", ".join(sorted({str(run.environment.get("commit", "unknown")) for run in row.runs})),
    ]


def _nearest(row: LedgerRow) -> str:
    run = row.nearest
    return "" if run is None else f"{run.folder}: {run.percent:.2f} % at {run.gflops:.3f}"


def is_run_of(result: RunResult, point: PublishedPoint) -> bool:
    """Return whether a run has the method, network, data set and settings of a published point."""
    same_network = result.network.removeprefix("cifar_").removeprefix("preact_") == point.backbone
    return (
        same_network
        and result.method == _method(point.system)
        and dataset_of(result) == point.dataset
        and bool(result.recipe["model"].get("se_ratio")) == point.system.startswith("SE-")
        and all(_has(result, key, wanted) for key, wanted in point.settings.items())
    )


def dataset_of(result: RunResult) -> str:
    """Return the name of a run's data set as published points have it: the last part of its source."""
    name = str(result.recipe["data"]["source"]).rstrip("/").rpartition("/")[2].lower()
    return "imagenet" if name.startswith("imagenet-1k") else name


def _method(system: str) -> str:
    if system in _METHODS:
        return _METHODS[system]
    return "static" if "ResNet-" in system else "rdi_net"


def _has(result: RunResult, key: str, wanted: Any) -> bool:
    allowed = wanted if isinstance(wanted, list) else [wanted]
    if key == "usw":
        phases = result.recipe["training"]["phases"]
        return any(phase["paths"] == "uniform" and phase["epochs"] > 0 for phase in phases) in allowed
    value: Any = result.recipe
    for part in key.split("."):
        value = value[part]
    return value in allowed
