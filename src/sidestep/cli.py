"""The command line: argument parsing and printing, nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from rich.console import Console

from sidestep.errors import SidestepError
from sidestep.tables import (
    bench_table,
    calibration_table,
    curve_table,
    methods_table,
    predictions_table,
    report_table,
)

if TYPE_CHECKING:
    from sidestep.recipe import Recipe
    from sidestep.runs import ExitBudget

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
_TRAIN_OPTIONS = {
    "--out": True,
    "--resume": False,
    "--accelerator": True,
    "--devices": True,
    "--strategy": True,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's error, 130 after an interrupt."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SidestepError as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sidestep: interrupted", file=sys.stderr)
        return 130


def script() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(main())


def _run(arguments: list[str]) -> int:
    overrides: list[str] = []
    if arguments[:1] in (["train"], ["quickstart"]):
        arguments, overrides = _split(arguments)
    if arguments[:1] == ["train"] and {"-h", "--help"} & set(arguments):
        _print_train_help()
        return 0
    options = _parser().parse_args(arguments)
    command = options.subcommand
    settings = options[command]
    if command == "train":
        return _train(settings, overrides)
    if command == "quickstart":
        return _quickstart(settings, overrides)
    commands = {
        "evaluate": _evaluate,
        "calibrate": _calibrate,
        "curve": _curve,
        "bench": _bench,
        "export": _export,
        "run": _run_plan,
        "methods": _methods,
        "results": _results,
    }
    return commands[command](settings)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the command itself, and those that override the recipe (they have a dot)."""
    own, overrides = [], []
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        name = item.partition("=")[0]
        if not name.startswith("--") or name in _TRAIN_OPTIONS or name in ("--help", "--json"):
            own.append(item)
            if _TRAIN_OPTIONS.get(name) and "=" not in item and rest:
                own.append(rest.pop(0))
        else:
            overrides.append(item)
            if "=" not in item and rest:
                overrides.append(rest.pop(0))
    return own, overrides


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sidestep", description="Networks that decide per image which blocks to execute."
    )
    commands = parser.add_subcommands(required=True, dest="subcommand")
    train = ArgumentParser(
        description="Train a recipe; --key value overrides it, for example --method.target 0.4."
    )
    train.add_argument("recipe", type=str, help="YAML file, see recipes/")
    train.add_argument("--out", type=str | None, help="run folder (default: runs/<recipe name>)")
    train.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    train.add_argument("--accelerator", default="auto", help="auto, cpu or cuda")
    train.add_argument("--devices", type=int, default=1, help="number of processes")
    train.add_argument("--strategy", default="auto", help="auto, or ddp for several processes")
    commands.add_subcommand("train", train, help="train a recipe into a run folder")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="accuracy, cost and paths of a run")
    calibrate = ArgumentParser(
        description="Solve the thresholds of early exits for a budget, and keep them in the checkpoint."
    )
    calibrate.add_argument("run", type=str, help="run folder")
    _add_budget(calibrate)
    _add_place(calibrate)
    calibrate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    commands.add_subcommand("calibrate", calibrate, help="early exits that meet a budget")
    curve = ArgumentParser(
        description="Accuracy over cost of a run's early exits, into exits.json, .csv and .png of its folder."
    )
    curve.add_argument("run", type=str, help="run folder")
    _add_criterion(curve)
    curve.add_argument("--num-budgets", type=int, default=20, help="from the cheapest to the dearest exit")
    _add_place(curve)
    commands.add_subcommand("curve", curve, help="accuracy over cost of early exits")
    bench = ArgumentParser(
        description="Measure a run's network beside its static origin in several runtimes."
    )
    bench.add_argument("run", type=str, help="run folder")
    bench.add_argument("--batch-sizes", type=str, default="1,32,256", help="images per call, with commas")
    bench.add_argument(
        "--seconds", type=float, default=10.0, help="time limit of each precision and batch size"
    )
    bench.add_argument("--source", type=str | None, help="where the data lies now (as data.source)")
    bench.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    commands.add_subcommand("bench", bench, help="measured milliseconds of a run")
    commands.add_subcommand("export", _export_parser(), help="a run's network as a plan for engines")
    run = ArgumentParser(description="Run a plan on image files, in the native engine.")
    run.add_argument("plan", type=str, help="file that export wrote")
    run.add_argument("images", nargs="+", type=str, help="pictures")
    run.add_argument("--precision", type=str, default="auto", help="auto, float32 or bfloat16")
    run.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    commands.add_subcommand("run", run, help="what a plan says about image files")
    methods = ArgumentParser(description="List the methods that recipes can name.")
    methods.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    commands.add_subcommand("methods", methods, help="what there is")
    results = ArgumentParser(description="Write a results page from finished run folders.")
    results.add_argument("runs", nargs="+", type=str, help="run folders, one per row")
    results.add_argument("--title", type=str, default="Results", help="heading of the page")
    results.add_argument("--out", type=str | None, help="markdown file (default: standard output)")
    results.add_argument("--figure", type=str | None, help="picture of accuracy over cost")
    results.add_argument(
        "--published", type=str | None, help="draw the papers' points too: cifar10, cifar100 or imagenet"
    )
    commands.add_subcommand("results", results, help="a results page from run folders")
    quickstart = ArgumentParser(
        description="Train, evaluate and time RDI-Net on handwritten digits, in minutes."
    )
    quickstart.add_argument("--out", type=str, default="runs/quickstart", help="run folder")
    commands.add_subcommand("quickstart", quickstart, help="the main job on embedded data")
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Evaluate a run: arg-max decisions without noise, or drawn ones.")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--execution", default="masked", help="masked, gathered, cascade (exits), or engine")
    parser.add_argument("--precision", type=str | None, help="of the engine: auto, float32 or bfloat16")
    parser.add_argument("--decisions", default="argmax", help="argmax, or sampled with training's noise")
    parser.add_argument("--seed", type=int | None, help="of sampled decisions (default: 0)")
    parser.add_argument("--split", default="test", help="test or val")
    _add_budget(parser)
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Write a run's network as a file that other programs run.")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--to", default="plan", help="format: plan, see docs/plan.md")
    parser.add_argument("--out", type=str | None, help="file (default: best.plan or last.plan in the run)")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    return parser


def _add_place(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best or last")
    parser.add_argument("--source", type=str | None, help="where the data lies now (as data.source)")


def _add_budget(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget", type=float | None, help="mean MACs of early exits, as a fraction of the full network's"
    )
    parser.add_argument("--budget-gflops", type=float | None, help="the same in GFLOPs of 2 x MACs, instead")
    _add_criterion(parser)


def _add_criterion(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--criterion", default="confidence", help="of exits: confidence, margin, entropy or patience"
    )
    parser.add_argument("--no-temperatures", action="store_true", help="fit no temperatures of exits")


def _print_train_help() -> None:
    from sidestep.recipe import settings_by_key

    print("usage: sidestep train RECIPE [--out DIR] [--resume] [--accelerator NAME] [--devices N]")
    print("                             [--strategy NAME] [--key value ...]\n")
    print("Trains a recipe into a run folder (default: runs/<recipe name>). Keys override the recipe;")
    print("those of a recipe with method rdi_net are:\n")
    for key, text in settings_by_key("rdi_net").items():
        print(f"  --{key}  {text}")


def _train(settings: Any, overrides: list[str]) -> int:
    from sidestep.recipe import load_recipe

    _fit(load_recipe(settings.recipe, overrides), settings)
    return 0


def _fit(recipe: Recipe, settings: Any) -> Path:
    from sidestep.runs import Devices, train

    devices = Devices(
        accelerator=settings.get("accelerator", "auto"),
        devices=settings.get("devices", 1),
        strategy=settings.get("strategy", "auto"),
    )
    folder = train(recipe, settings.out, resume=settings.get("resume", False), devices=devices)
    console = Console()
    for name, report in json.loads((folder / "report.json").read_text()).items():
        console.print(report_table(report, f"{folder} ({name} checkpoint, test split)"))
    return folder


def _budget(settings: Any) -> ExitBudget:
    from sidestep.runs import ExitBudget

    return ExitBudget(
        fraction=settings.budget,
        gflops=settings.budget_gflops,
        criterion=settings.criterion,
        scale=not settings.no_temperatures,
    )


def _calibrate(settings: Any) -> int:
    from sidestep.runs import calibrate

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
    from sidestep.runs import curve

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
    from sidestep.runs import evaluate

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
    from sidestep.evaluation.engine import MISSING, engine_installed
    from sidestep.runs import bench

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
    from sidestep.exporting import export_run

    written = export_run(settings.run, settings.out, to=settings.to, checkpoint=settings.checkpoint)
    size = f"{written.num_bytes / 1e6:.2f} MB"
    print(f"wrote {written.path}: {size}, {written.num_units} units that images can skip")
    return 0


def _run_plan(settings: Any) -> int:
    from sidestep.running import run_plan

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
    from sidestep.analysis.results import accuracy_cost, exit_curves, results_page
    from sidestep.errors import RecipeError

    folders = [Path(run) for run in settings.runs]
    if settings.published is not None and settings.figure is None:
        raise RecipeError(
            f"published has no effect without figure, got {settings.published!r}; say where with --figure"
        )
    page = results_page(settings.title, folders)
    if settings.figure is not None:
        from sidestep.analysis.figures import save_accuracy_cost
        from sidestep.analysis.published import published_points

        published = [] if settings.published is None else published_points(settings.published)
        save_accuracy_cost(Path(settings.figure), accuracy_cost(folders), published, exit_curves(folders))
    if settings.out is None:
        print(page, end="")
    else:
        Path(settings.out).write_text(page)
    return 0


def _quickstart(settings: Any, overrides: list[str]) -> int:
    from sidestep.recipe import load_recipe
    from sidestep.runs import bench

    folder = _fit(load_recipe(QUICKSTART, overrides), settings)
    result = bench(folder, batch_sizes=(1, 256), seconds=3.0).as_dict()
    Console().print(bench_table(result, str(folder)))
    return 0
