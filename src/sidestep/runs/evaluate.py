"""Runs evaluated: one report, thresholds for a budget, accuracy over cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sidestep.cost.latency_book import LatencyBook
from sidestep.data.split import Role
from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.budget_points import BudgetCalibration, BudgetCurve
from sidestep.evaluation.exit_curve import ExitCalibration, ExitCurve, check_curve, exit_curve
from sidestep.evaluation.per_image import PerImage
from sidestep.evaluation.report import Report, evaluate_network
from sidestep.evaluation.sampled import Sampled
from sidestep.execution.execution import EXECUTIONS, masked
from sidestep.files import kept, write_file
from sidestep.results.kept_curve import save_budget_curve, save_exit_curve
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.samplers import Noise, is_noisy
from sidestep.runs.at_budget import (
    CALIBRATIONS,
    Calibration,
    ExitBudget,
    batches_of,
    check_no_dial,
    check_no_exits,
    curve_of_exits,
    curve_of_routers,
    settle,
    settled_by_halves,
    solve,
    solve_routers,
)
from sidestep.runs.export import engine_of_run
from sidestep.runs.gate_budgets import check_gates, curve_of_gates
from sidestep.runs.image_tables import report_and_keep
from sidestep.runs.latency import book_for
from sidestep.runs.recipe import Recipe, method_of
from sidestep.runs.run_folder import ASKED, BIASES, EXITS, FRONTIER, OpenedRun, open_run
from sidestep.runs.run_lock import locked
from sidestep.targets.native_engine import EnginePrecision, evaluate_engine
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.step import settings_at
from sidestep.types import Batch

DECISIONS = ("argmax", "sampled")
_log = logging.getLogger(__name__)


def evaluate(
    run: Path | str,
    *,
    execution: str = "masked",
    decisions: str = "argmax",
    seed: int | None = None,
    budget: ExitBudget | None = None,
    calibration: Calibration = "val",
    book: str | None = None,
    split: Role = "test",
    checkpoint: str = "best",
    source: str | None = None,
    precision: EnginePrecision | Literal["int8"] | None = None,
    per_image: Path | None = None,
) -> Report:
    """Return the report of a run's network on one of its splits.

    Images leave a network with early exits where `budget` says, or where `calibrate` has said before, or all
    at the last exit. Thresholds are solved on the validation split, and so are the biases of gates that were
    trained for one budget. The routers of a network for all budgets are given the budget, or what `calibrate`
    or the recipe has said.

    Args:
        run: a run folder.
        execution: "masked", "gathered", "cascade" for a network with early exits, or "engine" for a plan in
            the native engine.
        decisions: "argmax", or "sampled" to draw them as the released codes of some methods do: with the
            sampler, noise included, that training ended with. Soft ones mix outputs, masked alone.
        seed: of what is drawn, 0 by default; the same seed gives the same report.
        budget: that an image may cost on average.
        calibration: "val", or "halves" to solve the biases of gates on either half of the test split for the
            other one.
        book: latency book, as `book_for` takes it, for a budget in milliseconds and for the report.
        split: "test" or "val".
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.
        precision: of the engine, "auto" by default; "int8" is calibrated on the validation split first. Other
            executions keep that of the weights.
        per_image: Parquet file with a row for every image (docs/data.md), or None.

    Raises:
        SidestepError: for an evaluation that does not exist, decisions drawn by a method without noise among
            them, or a budget that cannot be met.
    """
    if execution not in (known := (*EXECUTIONS, ENGINE)):
        raise RecipeError(f"execution must be one of {', '.join(known)}, got {execution!r}")
    opened = open_run(run, checkpoint)
    sampled = _sampled(opened.recipe, decisions, seed)
    if precision is not None and execution != ENGINE:
        raise ExecutionError(f"precision is the engine's alone, got execution {execution!r}; drop it")
    if execution == ENGINE and sampled is not None:
        raise ExecutionError("the engine knows arg-max decisions alone, got sampled; evaluate masked")
    if per_image is not None and per_image.suffix != ".parquet":
        raise RecipeError(f"per-image must be a .parquet file, got {per_image}; pandas and polars read it")
    latency = _latency(opened, budget, book, execution=execution, precision=precision)
    if calibration not in CALIBRATIONS:
        raise RecipeError(f"calibration must be one of {', '.join(CALIBRATIONS)}, got {calibration!r}")
    if calibration != "val":
        others = execution != "masked" or sampled is not None or split != "test" or per_image is not None
        if budget is None or others:
            raise RecipeError(
                f"calibration {calibration} must go with a budget and a masked report of the test split "
                "alone, got none or more; drop the other options"
            )
        return settled_by_halves(opened, budget, source, latency)
    changes = (sampled, budget, latency, source, per_image)
    is_plain = (execution, split, checkpoint) == (masked.name, "test", "best") and changes == 5 * (None,)
    # What exits are worth in reports takes the validation split too, which nobody asks for here.
    if is_plain and not opened.network.lets_leave:
        return report_and_keep(opened, batches_of(opened, split, source)())
    rule = settle(opened, budget, source, latency)
    rows = None if per_image is None else PerImage(opened.cost, latency)
    report = _evaluated(
        opened,
        batches_of(opened, split, source)(),
        rule,
        execution=execution,
        precision=precision,
        source=source,
        sampled=sampled,
        latency=latency,
        rows=rows,
    )
    if per_image is not None and rows is not None:
        write_file(per_image, rows.as_parquet(opened.class_names), what="table of images")
        _log.info("wrote %s", per_image)
    return report


def _evaluated(
    opened: OpenedRun,
    batches: Iterable[Batch],
    rule: ExitRule | None,
    *,
    execution: str,
    precision: EnginePrecision | Literal["int8"] | None,
    source: str | None,
    sampled: Sampled | None,
    latency: LatencyBook | None,
    rows: PerImage | None,
) -> Report:
    num_classes = len(opened.class_names)
    if execution == ENGINE:
        engine = engine_of_run(opened, rule, precision or "auto", source)
        return evaluate_engine(
            engine, batches, opened.cost, num_classes=num_classes, latency=latency, per_image=rows
        )
    return evaluate_network(
        opened.network,
        batches,
        opened.cost,
        num_classes=num_classes,
        execution=EXECUTIONS[execution],
        sampled=sampled,
        rule=rule,
        latency=latency,
        per_image=rows,
    )


def calibrate(
    run: Path | str,
    budget: ExitBudget,
    *,
    book: str | None = None,
    checkpoint: str = "best",
    source: str | None = None,
) -> ExitCalibration | BudgetCalibration:
    """Solve a budget on the validation split, keep what was found in the run's checkpoint, and return it.

    That is where images leave early exits, what the routers of a network for all budgets are asked for, or
    the biases of gates that were trained for one.

    Args:
        run: a run folder.
        budget: what an image may cost on average.
        book: latency book, as `book_for` takes it, for a budget in milliseconds.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a static network, or a budget that cannot be met; nothing is written then.
    """
    opened = open_run(run, checkpoint)
    with locked(opened.folder):
        latency = _latency(opened, budget, book)
        if opened.network.lets_leave:
            calibration = solve(opened, budget, source, latency)
            keep_calibration(opened, calibration)
            return calibration
        found = solve_routers(opened, budget, source, latency)
        _keep(opened, {ASKED: found.point.asked} if found.biases is None else {BIASES: found.biases})
    return found


def keep_calibration(opened: OpenedRun, calibration: ExitCalibration) -> None:
    """Keep in a run's checkpoint where images leave."""
    asked = {} if calibration.asked is None else {ASKED: calibration.asked}
    _keep(opened, {EXITS: asdict(calibration), **asked})


def _keep(opened: OpenedRun, values: dict[str, Any]) -> None:
    before = load_checkpoint(opened.path)
    save_checkpoint(opened.path, Checkpoint(tensors=before.tensors, values=before.values | values))


def curve(
    run: Path | str,
    *,
    criterion: str = "confidence",
    scale: bool = True,
    per_unit: bool = False,
    num_budgets: int = 20,
    book: str | None = None,
    checkpoint: str = "best",
    source: str | None = None,
) -> ExitCurve | BudgetCurve:
    """Return accuracy over cost of a run's early exits or budgets on the test split, and keep it there.

    In the run folder it is `exits.json`, which results pages read, `exits.csv` and `exits.png`, or
    `budgets.json`, `budgets.csv` and `budgets.png` of a network without exits, by routers that are given the
    budget or by biases of its gates. Those biases are kept in the checkpoint too, where plans, servers and
    `network(images, budget=0.5)` take them from. Where files cannot be written the curve is still returned,
    with an `UnkeptWarning`.

    Args:
        run: a run folder.
        criterion: by which images leave.
        scale: whether the temperatures of the exits are fitted first.
        per_unit: whether gates have a bias for every unit, see `ExitBudget`.
        num_budgets: number of budgets, from the cheapest to the dearest exit, of all that were trained, or
            from what gates cannot skip to everything.
        book: latency book, as `book_for` takes it, for a cost in milliseconds as well.
        checkpoint: "best" or "last".
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: for a static network.
    """
    check_curve(criterion, num_budgets)
    opened = open_run(run, checkpoint)
    latency = _latency(opened, None, book)
    if not opened.network.lets_leave:
        check_no_exits(criterion, scale)
        return _curve_of_budgets(opened, latency, num_budgets, source, per_unit=per_unit)
    check_no_dial(per_unit)
    exits = exit_curve(
        curve_of_exits(opened, source, latency),
        full_macs=opened.cost.full,
        criterion=criterion,
        scale=scale,
        num_budgets=num_budgets,
    )
    with kept():
        save_exit_curve(opened.folder, exits, checkpoint)
        _log.info("wrote exits.json, exits.csv and exits.png into %s", opened.folder)
    return exits


def _curve_of_budgets(
    opened: OpenedRun, latency: LatencyBook | None, num_budgets: int, source: str | None, *, per_unit: bool
) -> BudgetCurve:
    """Return and keep the curve of a network without exits, with the biases of gates where they make it."""
    frontier = None
    if opened.given is None:
        check_gates(opened)
        found, frontier = curve_of_gates(
            opened,
            batches_of(opened, "val", source),
            batches_of(opened, "test", source),
            latency,
            num_budgets=num_budgets,
            per_unit=per_unit,
        )
    else:
        check_no_dial(per_unit)
        batches = batches_of(opened, "test", source)
        found = curve_of_routers(opened, opened.budgets(num_budgets), batches, latency)
    name = opened.path.stem
    with kept():
        save_budget_curve(opened.folder, found, name)
        _log.info("wrote budgets.json, budgets.csv and budgets.png into %s", opened.folder)
        if frontier is not None:
            with locked(opened.folder):
                _keep(opened, {FRONTIER: asdict(frontier)})
    return found


def _latency(
    opened: OpenedRun,
    budget: ExitBudget | None,
    book: str | None,
    *,
    execution: str | None = None,
    precision: EnginePrecision | Literal["int8"] | None = None,
) -> LatencyBook | None:
    """Return the latency book that is asked for, of the runtime that the network is to run in, or None."""
    if book is None and (budget is None or budget.ms is None):
        return None
    if execution is None or EXECUTIONS.get(execution) is masked:
        # Where everything is computed nobody looks for the time that is saved.
        return book_for(opened, book)
    if execution != ENGINE:
        return book_for(opened, book, runtime="pytorch")
    return book_for(opened, book, runtime="engine", precision=None if precision == "auto" else precision)


def _sampled(recipe: Recipe, decisions: str, seed: int | None) -> Sampled | None:
    """Return what the decisions of an evaluation are drawn from, or None where they are not."""
    if decisions not in DECISIONS:
        raise RecipeError(f"decisions must be one of {', '.join(DECISIONS)}, got {decisions!r}")
    if decisions == "argmax":
        if seed is not None:
            raise RecipeError(
                f"seed has no effect on arg-max decisions, got {seed}; drop it, or set decisions to sampled"
            )
        return None
    if seed is not None and seed < 0:
        raise RecipeError(f"seed must be at least 0, got {seed}")
    method, settings, phases = method_of(recipe), recipe.settings, recipe.training.phases
    settings = settings_at(settings, phases[-1], 1.0) if phases else settings
    sampler = partial(method.noisy_sampler or method.sampler, settings)
    if not is_noisy(sampler(Noise(torch.Generator()))):
        raise RecipeError(
            f"decisions must be argmax where training ended without noise, got {decisions!r} for method "
            f"{method.name}; leave them out"
        )
    return Sampled(sampler=sampler, seed=seed or 0)
