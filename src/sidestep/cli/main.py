"""The command line: what each command calls and prints, nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sidestep.cli.arguments import parser, print_train_help, split
from sidestep.cli.tables import (
    bench_table,
    calibration_table,
    curve_table,
    methods_table,
    predictions_table,
    report_table,
    sweep_table,
)
from sidestep.errors import LoneProcessError, SidestepError

if TYPE_CHECKING:
    from sidestep.runs.evaluate import ExitBudget
    from sidestep.runs.recipe import Recipe

QUICKSTART = Path(__file__).parent / "quickstart.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    That is 0, 2 for a user's error, 130 after an interrupt, or 1 when another process of the run has ended.
    Of several processes the first speaks for all; another one tells what it has alone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SidestepError as error:
        if _is_first() or isinstance(error, LoneProcessError):
            print(f"sidestep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if _is_first():
            print("sidestep: interrupted", file=sys.stderr)
        return 130


def script() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(main())


def _run(arguments: list[str]) -> int:
    arguments, overrides = split(arguments)
    if arguments[:1] == ["train"] and {"-h", "--help"} & set(arguments):
        print_train_help()
        return 0
    options = parser().parse_args(arguments)
    command = options.subcommand
    settings = options[command]
    overridable = {"train": _train, "sweep": _sweep, "quickstart": _quickstart}
    if command in overridable:
        return overridable[command](settings, overrides)
    commands = {
        "evaluate": _evaluate,
        "calibrate": _calibrate,
        "curve": _curve,
        "bench": _bench,
        "export": _export,
        "run": _run_plan,
        "methods": _methods,
        "results": _results,
        "ledger": _ledger,
    }
    return commands[command](settings)


def _train(settings: Any, overrides: list[str]) -> int:
    from sidestep.runs.recipe import load_recipe

    _fit(load_recipe(settings.recipe, overrides), settings)
    return 0


def _fit(recipe: Recipe, settings: Any) -> Path:
    from sidestep.runs.train import train
    from sidestep.training.devices import Devices

    devices = Devices(
        accelerator=settings.get("accelerator", "auto"),
        devices=settings.get("devices"),
        strategy=settings.get("strategy", "auto"),
        num_nodes=settings.get("num_nodes"),
        graph=settings.get("graph", True),
        compile=settings.get("compile"),
    )
    folder = train(recipe, settings.out, resume=settings.get("resume", False), devices=devices)
    if _is_first():
        console = Console()
        for name, report in json.loads((folder / "report.json").read_text()).items():
            console.print(report_table(report, f"{folder} ({name} checkpoint, test split)"))
    return folder


def _is_first() -> bool:
    from sidestep.training.distributed import is_first

    return is_first()


def _sweep(settings: Any, overrides: list[str]) -> int:
    from sidestep.errors import RecipeError, TrainingError
    from sidestep.runs.sweep import sweep, sweep_runs
    from sidestep.training.devices import Devices

    for name in ("workers", "replicas"):
        if settings[name] < 1:
            raise RecipeError(f"{name} must be at least 1, got {settings[name]}")
    rows = sweep(
        sweep_runs(settings.recipes, settings.over, overrides),
        Path(settings.out),
        workers=settings.workers,
        replicas=settings.replicas,
        storage=settings.storage,
        devices=Devices(accelerator=settings.accelerator, graph=settings.graph, compile=settings.compile),
    )
    if settings.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        Console().print(sweep_table(rows, settings.out))
    failed = [row.name for row in rows if row.state != "complete"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(rows)} runs did not come to their end: {', '.join(failed)}; "
            "the same command tries them again"
        )
    return 0


def _budget(settings: Any) -> ExitBudget:
    from sidestep.runs.evaluate import ExitBudget

    return ExitBudget(
        fraction=settings.budget,
        gflops=settings.budget_gflops,
        criterion=settings.criterion,
        scale=not settings.no_temperatures,
    )


def _calibrate(settings: Any) -> int:
    from sidestep.runs.evaluate import calibrate

    calibration = calibrate(
        settings.run, _budget(settings), checkpoint=settings.checkpoint, source=settings.source
    )
    if settings.json:
        print(json.dumps(asdict(calibration)))
        return 0
    Console().print(calibration_table(calibration))
    cost = f"{2e-9 * calibration.macs:.4f} of {2e-9 * calibration.budget_macs:.4f} GFLOPs"
    print(f"validation: {calibration.accuracy:.2%} at {cost} per image; kept in the checkpoint")
    return 0


def _curve(settings: Any) -> int:
    from sidestep.runs.evaluate import curve

    found = curve(
        settings.run,
        criterion=settings.criterion,
        scale=not settings.no_temperatures,
        num_budgets=settings.num_budgets,
        checkpoint=settings.checkpoint,
        source=settings.source,
    )
    Console().print(curve_table(found, settings.run))
    return 0


def _evaluate(settings: Any) -> int:
    from sidestep.runs.evaluate import evaluate

    has_budget = settings.budget is not None or settings.budget_gflops is not None

    report = evaluate(
        settings.run,
        execution=settings.execution,
        decisions=settings.decisions,
        seed=settings.seed,
        budget=_budget(settings) if has_budget else None,
        split=settings.split,
        checkpoint=settings.checkpoint,
        source=settings.source,
        precision=settings.precision,
    ).as_dict()
    if settings.json:
        print(json.dumps(report))
    else:
        how = f"{settings.execution} execution, {settings.decisions} decisions"
        Console().print(report_table(report, f"{settings.run} ({how})"))
    return 0


def _bench(settings: Any) -> int:
    from sidestep.errors import RecipeError
    from sidestep.runs.timing import bench
    from sidestep.targets.native_engine import MISSING, engine_installed

    try:
        sizes = [int(size) for size in settings.batch_sizes.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise RecipeError(
            f"batch-sizes must be whole numbers from 1, got {settings.batch_sizes!r}; try 1,32,256"
        )
    if not engine_installed():
        print(MISSING, file=sys.stderr)
    result = bench(
        settings.run, batch_sizes=sizes, seconds=settings.seconds, source=settings.source
    ).as_dict()
    if settings.json:
        print(json.dumps(result))
    else:
        Console().print(bench_table(result, settings.run))
    return 0


def _export(settings: Any) -> int:
    from sidestep.runs.export import export_run

    written = export_run(settings.run, settings.out, to=settings.to, checkpoint=settings.checkpoint)
    size = f"{written.num_bytes / 1e6:.2f} MB"
    print(f"wrote {written.path}: {size}, {written.summary}")
    return 0


def _run_plan(settings: Any) -> int:
    from sidestep.targets.run_plan import run_plan

    found = run_plan(settings.plan, settings.images, precision=settings.precision)
    if settings.json:
        print(json.dumps([asdict(prediction) for prediction in found]))
    else:
        Console().print(predictions_table(found, settings.plan))
    return 0


def _methods(settings: Any) -> int:
    from sidestep.methods import METHODS

    if settings.json:
        print(json.dumps({name: method.summary for name, method in METHODS.items()}))
        return 0
    Console().print(methods_table(METHODS))
    return 0


def _results(settings: Any) -> int:
    from sidestep.errors import RecipeError
    from sidestep.results.page import results_page, save_results

    sources = [Path(run) for run in settings.runs]
    if settings.out is not None:
        save_results(Path(settings.out), sources, title=settings.title, published=settings.published)
        return 0
    if settings.published is not None:
        raise RecipeError(
            f"published has no effect without out, got {settings.published!r}; say with --out where page and "
            "figure go"
        )
    print(results_page(settings.title, sources), end="")
    return 0


def _ledger(settings: Any) -> int:
    from sidestep.results.ledger import ledger, ledger_page
    from sidestep.results.published import published_points

    points = published_points(settings.dataset)
    return _write(ledger_page(ledger(points, [Path(run) for run in settings.runs])), settings.out)


def _write(page: str, out: str | None) -> int:
    if out is None:
        print(page, end="")
    else:
        Path(out).write_text(page)
    return 0


def _quickstart(settings: Any, overrides: list[str]) -> int:
    from sidestep.runs.recipe import load_recipe
    from sidestep.runs.timing import bench

    folder = _fit(load_recipe(QUICKSTART, overrides), settings)
    if not _is_first():
        return 0
    result = bench(folder, batch_sizes=(1, 256), seconds=3.0).as_dict()
    Console().print(bench_table(result, str(folder)))
    return 0
