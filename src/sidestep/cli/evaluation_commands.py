"""Commands that measure runs: evaluate, calibrate, curve, bench."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from sidestep.cli.groups import Exits, Trained
from sidestep.cli.options import Only
from sidestep.cli.tables import (
    asked_table,
    bench_table,
    book_table,
    budgets_table,
    calibration_table,
    curve_table,
    report_table,
    show,
    tell,
)
from sidestep.errors import UsageError, typed


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a network is run.

    Attributes:
        execution: masked, gathered, cascade (early exits), or engine.
        precision: of the engine; int8 is calibrated on the validation split first.
        decisions: the best option of every unit, or drawn with training's noise.
        seed: of sampled decisions (default: 0).
    """

    execution: str = "masked"
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None = None
    decisions: Literal["argmax", "sampled"] = "argmax"
    seed: int | None = None


def evaluate(
    run: Path,
    *,
    how: Execution,
    split: Literal["test", "val"] = "test",
    exits: Exits,
    calibration: Literal["val", "halves"] = "val",
    trained: Trained,
    per_image: Path | None = None,
    json: bool = False,
) -> None:
    """Print accuracy, cost and paths of a run.

    Args:
        run: run folder, or a package such as hf-hub:org/name.
        how: the network is run.
        split: part of the data.
        exits: where images leave.
        calibration: of biases: val or halves of test.
        trained: which weights, on which data.
        per_image: Parquet file with label, answer, path and cost of every image.
        json: print one JSON object and nothing else.
    """
    from sidestep.runs.evaluate import evaluate as evaluate_run

    exits.check_use()
    report = evaluate_run(
        run,
        execution=how.execution,
        precision=how.precision,
        decisions=how.decisions,
        seed=how.seed,
        budget=exits.exit_budget() if exits.has_budget else None,
        calibration=calibration,
        book=exits.book,
        split=split,
        checkpoint=trained.checkpoint,
        source=trained.source,
        per_image=per_image,
    ).as_dict()
    title = f"{run} ({how.execution} execution, {how.decisions} decisions)"
    show(report, report_table(report, title), json)
    if exits.has_budget and report["exit_rates"] is None and report["image_bits"] is not None:
        from sidestep.evaluation.budget_points import depth_sentence

        if (depth := depth_sentence([report["image_bits"]], [report["class_bits"]])) is not None:
            tell(depth, json)


def calibrate(run: Path, *, exits: Exits, trained: Trained, json: bool = False) -> None:
    """Solve a budget on the validation split, and keep in the checkpoint how it is met.

    That is where images leave early exits, what the routers of a network for all budgets are asked for, or
    the biases of gates that were trained for one.

    Args:
        run: run folder, or a package such as hf-hub:org/name.
        exits: the budget.
        trained: which weights, on which data.
        json: print one JSON object and nothing else.
    """
    from sidestep.evaluation.exit_curve import ExitCalibration
    from sidestep.runs.evaluate import calibrate as calibrate_run

    budget = exits.exit_budget()
    found = calibrate_run(run, budget, book=exits.book, checkpoint=trained.checkpoint, source=trained.source)
    table = calibration_table(found) if isinstance(found, ExitCalibration) else asked_table(found)
    show(asdict(found), table, json)
    if not json:
        point = found if isinstance(found, ExitCalibration) else found.point
        cost = f"{2e-9 * point.macs:.4f} GFLOPs"
        if found.budget_macs is not None:
            cost = f"{2e-9 * point.macs:.4f} of {2e-9 * found.budget_macs:.4f} GFLOPs"
        if point.ms is not None:
            wanted = "" if found.budget_ms is None else f" of {found.budget_ms}"
            cost += f" and {point.ms:.4f}{wanted} ms"
        print(f"validation: {point.accuracy:.2%} at {cost} per image; kept in the checkpoint")


def curve(
    run: Path,
    *,
    exits: Annotated[Exits, Only("criterion", "no_temperatures", "book", "per_unit")],
    num_budgets: int = 20,
    trained: Trained,
) -> None:
    """Draw accuracy over cost of a run's early exits, of a network for all budgets, or of gates by biases.

    Its folder gets exits.json, exits.csv and exits.png, or budgets.json, budgets.csv and budgets.png; its
    checkpoint the biases of gates.

    Args:
        run: run folder, or a package such as hf-hub:org/name.
        exits: by which images leave.
        num_budgets: number of budgets, from the smallest to the largest.
        trained: which weights, on which data.
    """
    from sidestep.evaluation.exit_curve import ExitCurve
    from sidestep.runs.evaluate import curve as curve_of_run

    found = curve_of_run(
        run,
        criterion=exits.criterion,
        scale=not exits.no_temperatures,
        per_unit=exits.per_unit,
        num_budgets=num_budgets,
        book=exits.book,
        checkpoint=trained.checkpoint,
        source=trained.source,
    )
    title = str(run)
    table = curve_table(found, title) if isinstance(found, ExitCurve) else budgets_table(found, title)
    Console().print(table)
    if not isinstance(found, ExitCurve) and (depth := found.depth_sentence()) is not None:
        tell(depth)


def bench(
    run: Path,
    *,
    batch_sizes: str | None = None,
    seconds: float = 10.0,
    budget: float | None = None,
    book: Literal["engine", "pytorch", "onnxruntime", "openvino"] | None = None,
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None = None,
    calibrate: int | None = None,
    trained: Annotated[Trained, Only("source")],
    json: bool = False,
) -> None:
    """Measure a run's network beside its static origin in several runtimes, or its parts in one.

    Args:
        run: run folder, or a package such as hf-hub:org/name.
        batch_sizes: images per call, with commas (default: 1,32,256, of a latency book 1).
        seconds: time limit of each precision and batch size.
        budget: mean MACs as a fraction of the full network's (default: what calibrate has kept).
        book: measure every unit, exit and member in this runtime instead, for budgets in milliseconds.
        precision: of a latency book (default: auto, the engine's own choice and float32 elsewhere); int8 is
            the engine's alone.
        calibrate: number of validation images that int8 is calibrated on; 0 leaves it out (default: 512).
        trained: on which data.
        json: print one JSON object and nothing else.
    """
    default = "1,32,256" if book is None else "1"
    sizes = _batch_sizes(default if batch_sizes is None else batch_sizes)
    if book is not None:
        if calibrate is not None:
            raise UsageError(f"--calibrate {calibrate} has no effect on a latency book; drop one of them")
        if budget is not None:
            raise UsageError(
                f"--budget {budget} has no effect on a latency book, which has all paths; drop it"
            )
        _measure_books(run, sizes, seconds, (book, precision or "auto"), trained.source, json)
        return
    if precision is not None:
        raise UsageError(f"--precision {precision} has no effect without a latency book; add --book engine")
    from sidestep.runs.quantised import CALIBRATION_IMAGES
    from sidestep.runs.timing import bench as bench_run
    from sidestep.targets.native_engine import MISSING, engine_installed

    if not engine_installed():
        print(MISSING, file=sys.stderr)
    count = CALIBRATION_IMAGES if calibrate is None else calibrate
    result = bench_run(
        run, batch_sizes=sizes, seconds=seconds, budget=budget, source=trained.source, calibrate=count
    ).as_dict()
    show(result, bench_table(result, str(run)), json)


def _measure_books(
    run: Path, sizes: list[int], seconds: float, which: tuple[Any, Any], source: str | None, json: bool
) -> None:
    """Measure a run's latency book for every batch size, and print them."""
    from sidestep.cost.latency_book import as_values
    from sidestep.runs.latency import measure_book

    runtime, precision = which
    books = [
        measure_book(run, runtime, precision=precision, batch_size=size, seconds=seconds, source=source)
        for size in sizes
    ]
    show([as_values(book) for book in books], book_table(books, str(run)), json)
    command = f"sidestep calibrate {typed(run)} --ms {books[0].prices.full / 2:.2g} --book {books[0].name}"
    tell(f"next: `{command}`", json)


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise UsageError(f"batch-sizes must be whole numbers from 1, got {text!r}; try 1,32,256")
    return sizes
