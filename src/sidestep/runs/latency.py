"""Latency books of runs: measured on this machine, kept in the run folder, read for budgets in ms."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from sidestep.cost.latency_book import RUNTIMES, LatencyBook, Runtime, read_book, save_book
from sidestep.errors import RecipeError, typed
from sidestep.evaluation.environment import hardware, versions
from sidestep.evaluation.given_paths import PathRunner, check_has_paths, pytorch_paths
from sidestep.evaluation.onnx_pieces import onnx_paths
from sidestep.evaluation.price_fit import fit_prices
from sidestep.execution.prepare import Precision, prepare
from sidestep.files import kept
from sidestep.plan.format import Plan
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.export import exportable
from sidestep.runs.quantised import CALIBRATION_IMAGES, calibration_batches, quantised_plan
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.timing import test_images
from sidestep.targets.export_target import Exportable, plan_of
from sidestep.targets.native_engine import EnginePrecision, engine_of, engine_paths

# The folder of a run that holds its books.
LATENCY = "latency"
_PACKAGES: dict[Runtime, str] = {
    "engine": "sidestep-engine",
    "pytorch": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
BookPrecision = EnginePrecision | Literal["int8"]
INT8 = "int8"
_log = logging.getLogger(__name__)


def measure_book(
    run: Path | str,
    runtime: Runtime,
    *,
    precision: BookPrecision = "auto",
    batch_size: int = 1,
    seconds: float = 10.0,
    checkpoint: str = "best",
    source: str | None = None,
) -> LatencyBook:
    """Return what the parts of a run's network take on this machine, and keep it in the run folder.

    There it is `latency/RUNTIME-PRECISION-BATCH.json`. Where that cannot be written the book is still
    returned, with an `UnkeptWarning`.

    Args:
        run: a run folder.
        runtime: "engine", "pytorch", "onnxruntime" or "openvino".
        precision: of weights and features; "auto" is the engine's own choice, and float32 elsewhere, and
            "int8" the engine's alone: its plan on bytes, calibrated on the validation split.
        batch_size: images per call.
        seconds: time limit behind the warm-up.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says; real images are run.

    Raises:
        ExecutionError: where the runtime is not installed or lacks the precision, or the network halts.
        ExportError: for a network that the engine cannot run.
    """
    if runtime not in RUNTIMES:
        raise RecipeError(f"book must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    opened = open_run(run, checkpoint)
    images = test_images(opened, source, batch_size, opened.exit_rule)
    what = "timing paths through %s in %s, batch %d, for %g s and a warm-up"
    _log.info(what, run, runtime, batch_size, seconds)
    export = exportable(opened, opened.exit_rule)
    way = Way(runtime=runtime, precision=precision, batch_size=batch_size, seconds=seconds)
    batches = calibration_batches(opened, CALIBRATION_IMAGES, source) if way.precision == INT8 else []
    book = measured(
        export, images, way, _measured(opened), lambda what: quantised_plan(opened, what, batches)[1].plan
    )
    with kept():
        save_book(path := opened.folder / LATENCY / f"{book.name}.json", book)
        _log.info("wrote %s", path)
    return book


def book_for(
    opened: OpenedRun, name: str | None, *, runtime: Runtime | None = None, precision: str | None = None
) -> LatencyBook:
    """Return a latency book that holds for a run's network, here and now.

    Args:
        opened: the run.
        name: of a book in its folder, such as "engine-float32-1", or a file; None is the only one there.
        runtime: that the network is to run in, where that is known.
        precision: of the engine, where that is known.

    Raises:
        RecipeError: when there is no such book, or it is of another network, machine, runtime or precision.
    """
    folder = opened.path.parent
    path = _book_path(folder, name)
    book = read_book(path)
    again = f"measure it here with `sidestep bench {typed(folder)} --book {book.runtime}`"
    if book.network != _measured(opened):
        raise RecipeError(f"latency book {path} must be of this run's network, and is of another; {again}")
    check_place(book, path, again)
    if runtime is not None and book.runtime != runtime:
        raise RecipeError(
            f"latency book {path} must be of {runtime}, in which the network is to run, and is of "
            f"{book.runtime}; measure one with `sidestep bench {typed(folder)} --book {runtime}`"
        )
    if precision is not None and book.precision != precision:
        raise RecipeError(
            f"latency book {path} must be of {precision}, in which the network is to run, and is of "
            f"{book.precision}; measure one with `sidestep bench {typed(folder)} --book {book.runtime} "
            f"--precision {precision}`"
        )
    return book


def check_place(book: LatencyBook, path: Path, again: str) -> None:
    """Refuse a book of another machine, or of another version of its runtime.

    Args:
        book: the book.
        path: where it lies.
        again: what errors advise.

    Raises:
        RecipeError: naming what differs.
    """
    package = _PACKAGES[book.runtime]
    here = hardware() | {f"version of {package}": version_of(book.runtime)}
    there = book.hardware | {f"version of {package}": book.versions.get(package)}
    for what, value in here.items():
        if there.get(what) != value:
            raise RecipeError(
                f"latency book {path} must be of this machine as it is now, and its {what} is "
                f"{there.get(what)!r}, here {value!r}; {again}"
            )


def version_of(runtime: Runtime) -> str | None:
    """Return the version of a runtime, or None where it is not installed."""
    return versions([_PACKAGES[runtime]]).get(_PACKAGES[runtime])


def _book_path(folder: Path, name: str | None) -> Path:
    books = {path.stem: path for path in sorted((folder / LATENCY).glob("*.json"))}
    if name is None:
        if len(books) == 1:
            return next(iter(books.values()))
        what = f"there are {', '.join(books)}; choose one with --book" if books else "there is none"
        way_out = "" if books else f"; measure one with `sidestep bench {typed(folder)} --book engine`"
        raise RecipeError(f"milliseconds need one latency book of run {folder}, and {what}{way_out}")
    if name in books:
        return books[name]
    if Path(name).is_file():
        return Path(name)
    raise RecipeError(
        f"latency book {name!r} must be a file or one of run {folder}, which has "
        f"{', '.join(books) or 'none'}; measure it with `sidestep bench {typed(folder)} --book engine`"
    )


def _measured(opened: OpenedRun) -> dict[str, Any]:
    """Return what decides how long a network takes, as JSON gives it back."""
    recipe = opened.recipe.as_dict()
    return {"model": recipe["model"], "method": recipe["method"], "input_size": list(opened.input_size)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a network is to run while it is measured; attributes as the arguments of `measure_book`.

    Raises:
        RecipeError: for a precision that the runtime does not have here.
    """

    runtime: Runtime
    precision: BookPrecision = "auto"
    batch_size: int = 1
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.precision not in get_args(EnginePrecision) and self.precision != INT8:
            known = ", ".join((*get_args(EnginePrecision), INT8))
            raise RecipeError(f"precision must be one of {known}, got {self.precision!r}")
        if self.precision == INT8 and self.runtime != "engine":
            raise RecipeError(
                f"precision int8 of a latency book must go with the engine, got {self.runtime}; drop one"
            )


def measured(
    export: Exportable,
    images: Tensor,
    way: Way,
    network: dict[str, Any],
    on_bytes: Callable[[Exportable], Plan] | None = None,
) -> LatencyBook:
    """Return the latency book of a network.

    Args:
        export: the network, and what belongs to it.
        images: (N, 3, H, W) normalised images.
        way: how it runs.
        network: what the book says that it is of.
        on_bytes: returns a plan on bytes of what is exported, which precision "int8" needs.

    Raises:
        SidestepError: as `measure_book`.
    """
    check_has_paths(export.network)
    chooses = export.network.router is not None and bool(export.network.units)
    runner, precision = _runner(export, way, images, chooses, on_bytes or plan_of)
    fitted = fit_prices(
        runner, images, export.cost, chooses=chooses, batch_size=way.batch_size, seconds=way.seconds
    )
    return LatencyBook(
        prices=fitted.prices,
        runtime=way.runtime,
        precision=precision,
        batch_size=way.batch_size,
        error=fitted.error,
        network=network,
        hardware=hardware(),
        versions=versions(("sidestep", *_PACKAGES.values())),
    )


def with_all_exits(export: Exportable) -> Exportable:
    """Return the same with a rule, by which none leaves early if it has none: plans have exits by rules."""
    if export.rule is not None or not export.network.lets_leave:
        return export
    thresholds = [2.0] * (export.network.num_exits - 1)
    return replace(export, rule=ExitRule(thresholds=thresholds, criterion="confidence"))


def _runner(
    export: Exportable, way: Way, images: Tensor, chooses: bool, on_bytes: Callable[[Exportable], Plan]
) -> tuple[PathRunner, str]:
    """Return the way to run a network, and the precision that it takes."""
    if way.runtime == "engine":
        export = with_all_exits(export)
        if way.precision == "int8":
            return engine_paths(engine_of(on_bytes(export).as_bytes()), chooses=chooses), INT8
        engine = engine_of(plan_of(export).as_bytes(), way.precision)
        return engine_paths(engine, chooses=chooses), str(engine.precision)
    criterion = "confidence" if export.rule is None else export.rule.criterion
    precision: Precision = "bfloat16" if way.precision == "bfloat16" else "float32"
    prepared = prepare(export.network, images[:2])
    if way.runtime == "pytorch":
        return pytorch_paths(prepared, precision, criterion), precision
    return onnx_paths(prepared, way.runtime, precision, way.batch_size, criterion), precision
