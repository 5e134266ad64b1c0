"""Commands that train: train, sweep, quickstart."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from sidestep.cli.options import Only, Overrides
from sidestep.cli.tables import bench_table, report_table, show, sweep_table
from sidestep.errors import TrainingError, UsageError
from sidestep.training.devices import Devices

if TYPE_CHECKING:
    from sidestep.runs.recipe import Recipe

QUICKSTART = Path(__file__).parent / "quickstart.yaml"


def train(
    recipe: Path, *, overrides: Overrides, out: Path | None = None, resume: bool = False, devices: Devices
) -> None:
    """Train a recipe into a run folder.

    `sidestep train RECIPE --help` lists the keys of that recipe.

    Args:
        recipe: YAML file, see recipes/.
        overrides: another value for a key of the recipe, such as --method.target 0.4.
        out: run folder (default: runs/ and the recipe's name).
        resume: go on with the interrupted run in --out.
        devices: where, and how steps are run there.
    """
    from sidestep.runs.recipe import load_recipe

    _train(load_recipe(recipe, overrides), out, resume=resume, devices=devices)


def sweep(
    recipes: list[Path],
    *,
    overrides: Overrides,
    over: list[str],
    out: Path = Path("runs/sweep"),
    workers: int = 1,
    replicas: int = 1,
    storage: str | None = None,
    devices: Annotated[Devices, Only("accelerator", "graph", "compile")],
    json: bool = False,
) -> None:
    """Train recipes at every combination of settings.

    The same command goes on with a sweep that was interrupted.

    Args:
        recipes: YAML files.
        overrides: another value for a key of all recipes, such as --training.batch_size 64.
        over: key=value,value: what varies; a key of recipes, seed or budget; may be given again.
        out: folder of the run folders.
        workers: processes; more may be started elsewhere.
        replicas: runs that a process trains at a time.
        storage: URL of a database (default: a file in --out).
        devices: where every run is trained.
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.sweep import sweep as sweep_over
    from sidestep.runs.sweep import sweep_runs

    for name, number in (("workers", workers), ("replicas", replicas)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}; leave it out for one")
    runs = sweep_runs(recipes, over, overrides)
    rows = sweep_over(runs, out, workers=workers, replicas=replicas, storage=storage, devices=devices)
    show([asdict(row) for row in rows], sweep_table(rows, str(out)), json)
    failed = [row.name for row in rows if row.state != "complete"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(rows)} runs did not come to their end: {', '.join(failed)}; "
            "the same command tries them again"
        )


def quickstart(*, overrides: Overrides, out: Path = Path("runs/quickstart")) -> None:
    """Train, evaluate and time RDI-Net on handwritten digits, in minutes.

    Args:
        overrides: another value for a key of the recipe, such as --method.target 0.4.
        out: run folder.
    """
    from sidestep.runs.recipe import load_recipe
    from sidestep.runs.timing import bench
    from sidestep.training.distributed import is_first

    folder = _train(load_recipe(QUICKSTART, overrides), out, devices=Devices())
    if is_first():
        result = bench(folder, batch_sizes=(1, 256), seconds=3.0).as_dict()
        Console().print(bench_table(result, str(folder)))


def _train(recipe: Recipe, out: Path | None, *, resume: bool = False, devices: Devices) -> Path:
    """Train a recipe, print the reports of its end, and return the run folder."""
    from sidestep.runs.train import train as train_recipe
    from sidestep.training.distributed import is_first

    folder = train_recipe(recipe, out, resume=resume, devices=devices)
    reports = folder / "report.json"
    if is_first() and reports.is_file():
        for name, report in json_format.loads(reports.read_text()).items():
            Console().print(report_table(report, f"{folder} ({name} checkpoint, test split)"))
    return folder
