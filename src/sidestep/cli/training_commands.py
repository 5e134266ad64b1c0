"""Commands that train: train, sweep, quickstart."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from sidestep.cli.options import Only, Overrides
from sidestep.cli.tables import (
    bench_table,
    comparison_table,
    recipes_list,
    report_table,
    show,
    sweep_table,
    tell,
)
from sidestep.errors import TrainingError, UsageError, typed
from sidestep.training.devices import Devices

if TYPE_CHECKING:
    from sidestep.runs.recipe import Recipe


def train(
    recipe: Path, *, overrides: Overrides, out: Path | None = None, resume: bool = False, devices: Devices
) -> None:
    """Train a recipe into a run folder.

    `sidestep train RECIPE --help` lists the keys of that recipe.

    Args:
        recipe: YAML file, or a name that `sidestep recipes` lists.
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
        recipes: YAML files, or names that `sidestep recipes` lists.
        overrides: another value for a key of all recipes, such as --training.batch_size 64.
        over: key=value,value: what varies; a key of recipes, seed or budget; may be given again.
        out: folder of the run folders.
        workers: processes; more may be started elsewhere.
        replicas: runs that a process trains at a time.
        storage: URL of a database (default: a file in --out).
        devices: where every run is trained.
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.combinations import sweep_runs
    from sidestep.runs.sweep import sweep as sweep_over

    for name, number in (("workers", workers), ("replicas", replicas)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}; leave it out for one")
    runs = sweep_runs(recipes, over, overrides)
    rows = sweep_over(runs, out, workers=workers, replicas=replicas, storage=storage, devices=devices)
    show([asdict(row) for row in rows], sweep_table(rows, str(out)), json)
    failed = [row for row in rows if row.state != "complete"]
    if failed:
        causes = "".join(f"\n  - {row.name}: {row.error or row.state}" for row in failed)
        raise TrainingError(
            f"{len(failed)} of {len(rows)} runs did not come to their end; the same command tries them again"
            f"{causes}"
        )
    if any(row.accuracy is None for row in rows):
        tell("nothing is held out of some runs' images (data.val_fraction 0), so none of these is best", json)
    tell(f"`sidestep results {typed(out)} --out PAGE.md` writes a page of these runs", json)


def quickstart(*, overrides: Overrides, out: Path = Path("runs/quickstart")) -> None:
    """Train, evaluate and time RDI-Net on handwritten digits, in minutes.

    The static network of the same recipe is trained beside it, into a folder whose name ends in "-static".

    Args:
        overrides: another value for a key of the recipe, such as --method.target 0.4.
        out: run folder.
    """
    from sidestep.runs.recipe import load_recipe
    from sidestep.runs.run_folder import check_startable
    from sidestep.runs.timing import bench
    from sidestep.runs.train import train as train_recipe
    from sidestep.training.distributed import is_first

    beside = out.parent / f"{out.absolute().name}-static" if out.name else Path(f"{out.resolve()}-static")
    recipes = {beside: load_recipe("quickstart_static"), out: load_recipe("quickstart", overrides)}
    for folder in filter(Path.is_dir, recipes):
        check_startable(folder)
    reports = {folder.name: _best(train_recipe(recipe, folder)) for folder, recipe in recipes.items()}
    if not is_first():
        return
    Console().print(comparison_table(reports, "297 test images, best checkpoints"))
    result = bench(out, batch_sizes=(1, 256), seconds=3.0).as_dict()
    Console().print(bench_table(result, str(out)))
    print(f"wrote {beside} and {out}: checkpoints, metrics and keep_rates.png")
    print(f"next: `sidestep export {typed(out)} --to plan` for the engine, or CIFAR-10 in half an hour:")
    print("`sidestep train rdi_net_resnet20_cifar10_short`; `sidestep recipes` lists all")


def recipes(*, json: bool = False) -> None:
    """List the recipes that come with sidestep: paper, expected result, minutes.

    `sidestep train NAME` trains one.

    Args:
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.recipe_book import recipe_cards

    cards = recipe_cards()
    show([asdict(card) for card in cards], recipes_list(cards), json)


def weights(name: str, *, out: Path | None = None, file: Path | None = None) -> None:
    """Download trained weights of a static network that recipes start from.

    The file is checked against its published checksum and written as safetensors.

    Args:
        name: resnet20-cifar10, 32, 44, 56 or 110, or timm/ and the name of a network of timm with its tag.
        out: safetensors file (default: weights/ and the name, where recipes look).
        file: copy of the published file that is there already, instead of a download.
    """
    from sidestep.runs.published_weights import fetch_weights

    print(f"wrote {fetch_weights(name, out, file=file)}")


def _train(recipe: Recipe, out: Path | None, *, resume: bool = False, devices: Devices) -> None:
    """Train a recipe, print what came out, and say where it lies."""
    from sidestep.runs.train import train as train_recipe
    from sidestep.training.distributed import is_first

    folder = train_recipe(recipe, out, resume=resume, devices=devices)
    if not is_first():
        return
    reports = folder / "report.json"
    if reports.is_file():
        for name, report in json_format.loads(reports.read_text()).items():
            Console().print(report_table(report, f"{folder} ({name} checkpoint, test split)"))
    name = typed(folder)
    print(f"wrote {folder}: best and last checkpoint, metrics, report")
    print(f"next: `sidestep evaluate {name}`, `sidestep bench {name}`, `sidestep export {name}`")


def _best(folder: Path) -> dict[str, Any]:
    """Return the report of a run's best checkpoint."""
    report: dict[str, Any] = json_format.loads((folder / "report.json").read_text())["best"]
    return report
