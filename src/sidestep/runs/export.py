"""A run's network for other programs: written as a file, or in the native engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError, ExecutionError, ExportError, RecipeError, typed
from sidestep.evaluation.bench import ENGINE, BenchPrecision
from sidestep.evaluation.exit_curve import ExitCurve
from sidestep.evaluation.rivals import Runner
from sidestep.execution.prepare import Precision
from sidestep.files import read_json
from sidestep.plan.levels import Level, rising
from sidestep.quantisation.comparison import QuantisationReport
from sidestep.results.kept_curve import BUDGETS, EXITS, budget_curve_from, read_exit_curve
from sidestep.routing.dial import DialLevel
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.at_budget import ExitBudget, batches_of, settle
from sidestep.runs.quantised import CALIBRATION_IMAGES, quantised_plan, quantised_run, write_quantised
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.saved import is_saved, open_saved
from sidestep.targets import TARGETS, Exportable, ExportTarget
from sidestep.targets.export_target import PLAN, plan_of
from sidestep.targets.native_engine import EnginePrecision, engine_installed, engine_of, engine_runner

ExportPrecision = Literal["float32", "int8"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file or folder.
        num_bytes: its size.
        summary: a few words about it.
        quantisation: what INT8 has cost, or None for float32.
    """

    path: Path
    num_bytes: int
    summary: str
    quantisation: QuantisationReport | None = None


def export_run(
    run: Path | str,
    out: Path | str | None = None,
    *,
    to: str = "plan",
    segments: int | None = None,
    checkpoint: str = "best",
    budget: float | None = None,
    source: str | None = None,
    model: nn.Module | None = None,
    precision: ExportPrecision = "float32",
    calibrate: int | None = None,
) -> Exported:
    """Write a run's network for another program, and return where it is.

    Images leave a network with early exits where `calibrate` has said, or all at the last exit; a network for
    all budgets is written for the one that `calibrate` or the recipe has said, and gates as they were trained
    or calibrated, with the budgets beside them that `curve` has kept.

    Args:
        run: a run folder, or a file that `save` has written.
        out: the file or folder; by default named like the checkpoint in the run folder, `best.plan` or
            `last.segments`.
        to: an export target: "plan" (docs/plan.md), "onnx" (docs/segments.md), "timm" (docs/hub.md), or one
            that was registered.
        segments: that an image runs at most, for a target in segments; the rest is frozen, and what that
            costs is measured on the validation split. By default 8, or one for every exit if these are more.
        checkpoint: "best" or "last".
        budget: of exits, routers or gates instead, as a fraction of the full network's MACs.
        source: where the data lies now on which exits and gates are solved for a budget, and what is frozen
            is measured, if not where the recipe says.
        model: the static network of a file that `save` has written, where that is not timm's.
        precision: "int8" writes a plan whose weights and maps are bytes as far as that keeps its answers
            (docs/quantisation.md), by default `best.int8.plan`, and beside it as JSON what that costs on the
            test split.
        calibrate: number of validation images that ranges in INT8 are found on, 512 by default.

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
        RecipeError: for a target that is unknown, a budget that cannot be met, or what has no effect.
        DataError: where images are needed and missing.
        ExportError: for a network that the target cannot express, or a file that cannot be written.
    """
    target = TARGETS[to]
    _check_precision(target, precision, calibrate, run)
    _check_effect(target, segments, None if budget is not None or precision == "int8" else source)
    if is_saved(run):
        if budget is not None or segments is not None or source is not None:
            raise RecipeError(
                f"budget, segments and source must go with a run folder, got the file {run}; drop them"
            )
        saved = open_saved(Path(run), model)
        path = saved.path.with_suffix(target.suffix) if out is None else Path(out)
        return _written(target, saved.exportable(), path)
    if model is not None:
        raise RecipeError(f"model must go with a file that save has written, got run {run}; drop it")
    opened = open_run(run, checkpoint)
    suffix = ("." + precision if precision == "int8" else "") + target.suffix
    path = opened.path.with_suffix(suffix) if out is None else Path(out)
    rule = settle(opened, None if budget is None else ExitBudget(fraction=budget), source)
    _log.info("writing the network of %s as %s", run, to)
    export = exportable(opened, rule, source=source, segments=segments)
    if precision == "int8":
        return _quantised(opened, export, path, calibrate, source)
    return _written(target, export, path)


def _quantised(
    opened: OpenedRun, export: Exportable, path: Path, count: int | None, source: str | None
) -> Exported:
    count = CALIBRATION_IMAGES if count is None else count
    report = write_quantised(opened, export, path, count=count, source=source)
    bytes_, layers = sum(not layer.is_real for layer in report.layers), len(report.layers)
    return Exported(
        path=path,
        num_bytes=report.num_bytes_quantised,
        summary=f"{bytes_} of {layers} layers on bytes, {report.num_bytes / 1e6:.2f} MB in float32",
        quantisation=report,
    )


def _check_precision(
    target: ExportTarget, precision: ExportPrecision, calibrate: int | None, run: Path | str
) -> None:
    if precision not in get_args(ExportPrecision):
        known = ", ".join(get_args(ExportPrecision))
        raise RecipeError(f"precision must be one of {known}, got {precision!r}")
    if precision != "int8":
        if calibrate is not None:
            raise RecipeError(f"calibrate must go with precision int8, got {calibrate}; drop it")
        return
    if target is not PLAN:
        raise RecipeError(f"precision int8 must go with to 'plan', got to {target.name!r}; drop one of them")
    if is_saved(run):
        raise RecipeError(
            f"precision int8 must go with a run folder, whose data it is calibrated on, got the file {run}; "
            "train the network as a run, or drop it"
        )


def _written(target: ExportTarget, what: Exportable, path: Path) -> Exported:
    try:
        summary = target.write(what, path)
    except OSError as error:
        raise ExportError(
            f"{path} could not be written ({error.strerror}); choose another with --out"
        ) from error
    parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
    num_bytes = sum(part.stat().st_size for part in parts)
    return Exported(path=path, num_bytes=num_bytes, summary=summary)


def _check_effect(target: ExportTarget, segments: int | None, source: str | None) -> None:
    if target.takes_segments:
        return
    fitting = " or ".join(name for name, each in TARGETS.items() if each.takes_segments)
    if segments is not None:
        raise RecipeError(f"segments must go with to {fitting}, got to {target.name!r}; drop them")
    if source is not None:
        raise RecipeError(
            f"source {source!r} must go with a budget that is solved on images, or with to {fitting}, "
            f"got to {target.name!r} and no budget; drop it"
        )


def exportable(
    opened: OpenedRun, rule: ExitRule | None, *, source: str | None = None, segments: int | None = None
) -> Exportable:
    """Return what an export target gets of a run.

    Args:
        opened: the run.
        rule: where images leave a network with early exits; without one all leave at the last.
        source: where the data lies now, if not where the recipe says.
        segments: that an image runs at most.
    """
    recipe, data = opened.recipe, opened.recipe.data
    return Exportable(
        network=opened.network,
        cost=opened.cost,
        rule=rule,
        input_size=opened.input_size,
        preparation=opened.preparation,
        mean=data.mean,
        std=data.std,
        per_image_standardization=data.per_image_standardization,
        class_names=opened.class_names,
        about={
            "recipe": recipe.name,
            "method": recipe.method,
            "model": recipe.model.name,
            "checkpoint": opened.path.stem,
        },
        levels=_levels(opened, rule),
        dial=_dial(opened),
        validation=lambda: batches_of(opened, "val", source)(),
        num_segments=segments,
    )


def served(opened: OpenedRun) -> Exportable:
    """Return what a server gets of a run: all budgets of its curve, where `curve` has drawn one.

    A run that nothing was calibrated for leaves by its curve's rule.
    """
    rule = opened.exit_rule
    if rule is None and (drawn := _curve(opened)) is not None:
        levels = _rising(drawn)
        rule = ExitRule(
            thresholds=levels[-1].thresholds, criterion=drawn.criterion, temperatures=drawn.temperatures
        )
    return exportable(opened, rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutersBudget:
    """A budget of a network for all budgets.

    Attributes:
        level: what comes out, as a curve has measured it.
        asked: what its routers are asked for.
    """

    level: Level
    asked: float


def served_budgets(opened: OpenedRun) -> list[RoutersBudget]:
    """Return the budgets of a run for all budgets, as its curve has them, cheapest first.

    There are none for other runs, beside early exits, or where the curve is another checkpoint's.

    Raises:
        CheckpointError: when the curve is damaged, or of another network.
    """
    path = opened.folder / BUDGETS
    if opened.given is None or opened.network.lets_leave or not path.is_file():
        return []
    again = f"draw it again with `sidestep curve {opened.folder}`"
    values = read_json(path, what="curve", way_out=again)
    try:
        curve, checkpoint = budget_curve_from(values), values["checkpoint"]
        asked = {(float(point.macs), float(point.accuracy)): float(point.asked) for point in curve.points}
        same = math.isclose(curve.full_macs, opened.cost.full, rel_tol=1e-6)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"curve {path} must be what `curve` wrote; {again}") from error
    if checkpoint != opened.path.stem:
        return []
    if not same or not all(opened.given.low <= each <= 1 for each in asked.values()):
        raise CheckpointError(f"curve {path} must be of the run's network, and is not; {again}")
    levels = rising(
        [Level(macs=macs, accuracy=right, exit_rates=[1.0], thresholds=[]) for macs, right in asked]
    )
    return [RoutersBudget(level=level, asked=asked[level.macs, level.accuracy]) for level in levels]


def _levels(opened: OpenedRun, rule: ExitRule | None) -> list[Level]:
    """Return the budgets of a run's curve; none where images leave by other scores than the curve's."""
    drawn = None if rule is None else _curve(opened)
    if rule is None or drawn is None:
        return []
    same = rule.criterion == drawn.criterion and _close(rule.temperatures, drawn.temperatures)
    if not same:
        _log.info(
            "one budget alone: the run was calibrated with other scores than its curve; draw that again with "
            "`sidestep curve %s --criterion %s`",
            opened.path.parent,
            rule.criterion,
        )
    return _rising(drawn) if same else []


def _dial(opened: OpenedRun) -> Sequence[DialLevel]:
    """Return the budgets of a run's gates that `curve` has kept; none where exits or routers keep budgets."""
    if opened.network.lets_leave or opened.given is not None or opened.frontier is None:
        return ()
    return opened.frontier.levels


def _close(one: Sequence[float] | None, other: Sequence[float]) -> bool:
    # Fitted twice to the same images they may differ in the last digits.
    return all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one or [1.0] * len(other), other, strict=True)
    )


def _rising(drawn: ExitCurve) -> list[Level]:
    return rising(
        [
            Level(
                macs=row.point.macs,
                accuracy=row.point.accuracy,
                exit_rates=row.point.exit_rates,
                thresholds=row.thresholds,
            )
            for row in drawn.points
            if row.thresholds is not None
        ]
    )


def _curve(opened: OpenedRun) -> ExitCurve | None:
    """Return the curve that was drawn of a run's checkpoint, or None.

    Raises:
        CheckpointError: when it is damaged, or of another network.
    """
    folder = opened.path.parent
    if not (folder / EXITS).is_file():
        return None
    if opened.given is not None:
        _log.info("one budget alone: those of the curve ask routers for other budgets, and a plan's have one")
        return None
    again = f"draw it again with `sidestep curve {typed(folder)}`"
    try:
        kept = read_exit_curve(folder / EXITS)
        points = kept.points("budgeted")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"curve {folder / EXITS} must be what `curve` wrote; {again}") from error
    if kept.checkpoint != opened.path.stem or not points:
        return None
    same = math.isclose(kept.curve.full_macs, opened.cost.full, rel_tol=1e-6)
    if not same or len(kept.curve.temperatures) != opened.network.num_exits:
        raise CheckpointError(f"curve {folder / EXITS} must be of the run's network, and is not; {again}")
    return kept.curve


def engine_of_run(
    opened: OpenedRun,
    rule: ExitRule | None,
    precision: EnginePrecision | Literal["int8"],
    source: str | None = None,
) -> Any:
    """Return the native engine of a run's network.

    Args:
        opened: the run.
        rule: where images leave a network with early exits; without one all leave at the last.
        precision: "int8" is calibrated on validation images first; what stays real is in the engine's own
            choice then.
        source: where the data lies now, if not where the recipe says.

    Raises:
        ExportError: for a network that no plan can express.
        ExecutionError: when the engine is not installed, or cannot run it in that precision here.
    """
    export = exportable(opened, rule, source=source)
    if precision == "int8":
        return engine_of(quantised_run(opened, export, source=source).found.plan.as_bytes())
    return engine_of(plan_of(export).as_bytes(), precision)


def engines_of(opened: OpenedRun, rule: ExitRule | None) -> dict[BenchPrecision, dict[str, Runner]]:
    """Return the engine in every precision that it has here, to be timed; none where there is none."""
    if not engine_installed():
        return {}
    found: dict[BenchPrecision, dict[str, Runner]] = {}
    with suppress(ExportError):
        plan = plan_of(exportable(opened, rule)).as_bytes()
        for precision in get_args(Precision):
            with suppress(ExecutionError):
                found[precision] = {ENGINE: engine_runner(engine_of(plan, precision))}
    return found


def int8_engine(
    opened: OpenedRun, rule: ExitRule | None, images: Tensor
) -> dict[BenchPrecision, dict[str, Runner]]:
    """Return the engine of a run's plan on bytes, to be timed; nothing where it cannot run that.

    Args:
        opened: the run.
        rule: where images leave a network with early exits.
        images: (N, C, H, W) that it is calibrated on.
    """
    if not engine_installed():
        return {}
    with suppress(ExportError, ExecutionError):
        _, found = quantised_plan(opened, exportable(opened, rule), torch.split(images, 64))
        return {"int8": {ENGINE: engine_runner(engine_of(found.plan.as_bytes()))}}
    return {}
