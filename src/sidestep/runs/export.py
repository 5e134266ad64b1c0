"""A run's network as a plan: a file that other programs run, or the native engine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sidestep.errors import ExecutionError, ExportError
from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.rivals import Runner
from sidestep.execution.prepare import Precision
from sidestep.plan.format import Plan, save_plan
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.recipe import method_of
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.targets.native_engine import EnginePrecision, engine_installed, engine_of, engine_runner

FORMATS = ("plan",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        num_bytes: its size.
        num_units: units that are chosen about.
    """

    path: Path
    num_bytes: int
    num_units: int


def export_run(
    run: Path | str, out: Path | str | None = None, *, to: str = "plan", checkpoint: str = "best"
) -> Exported:
    """Write a run's network as a plan, and return where it is.

    Images leave a network with early exits where `calibrate` has said, or all at the last exit.

    Args:
        run: a run folder.
        out: the file; by default `best.plan` or `last.plan` in the run folder.
        to: the format, "plan" (docs/plan.md).
        checkpoint: "best" or "last".

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
        ExportError: for a network that no plan can express, or a file that cannot be written.
    """
    if to not in FORMATS:
        raise ExportError(f"to must be one of {', '.join(FORMATS)}, got {to!r}")
    opened = open_run(Path(run), checkpoint)
    plan = plan_of(opened, opened.exit_rule)
    path = opened.path.with_suffix(".plan") if out is None else Path(out)
    return Exported(path=path, num_bytes=save_plan(path, plan), num_units=plan.num_units)


def plan_of(opened: OpenedRun, rule: ExitRule | None) -> Plan:
    """Return the plan of a run's network.

    Args:
        opened: the run.
        rule: where images leave a network with early exits; without one all leave at the last.

    Raises:
        ExportError: for a network that no plan can express.
    """
    return export_plan(opened.network, _card_of(opened), rule)


def engine_of_run(opened: OpenedRun, rule: ExitRule | None, precision: EnginePrecision) -> Any:
    """Return the native engine of a run's network.

    Raises:
        ExportError: for a network that no plan can express.
        ExecutionError: when the engine is not installed, or cannot run it in that precision here.
    """
    return engine_of(plan_of(opened, rule).as_bytes(), precision)


def engines_of(opened: OpenedRun, rule: ExitRule | None) -> dict[Precision, dict[str, Runner]]:
    """Return the engine in every precision that it has here, to be timed; none where there is none."""
    if not engine_installed():
        return {}
    found: dict[Precision, dict[str, Runner]] = {}
    with suppress(ExportError):
        plan = plan_of(opened, rule).as_bytes()
        for precision in get_args(Precision):
            with suppress(ExecutionError):
                found[precision] = {ENGINE: engine_runner(engine_of(plan, precision))}
    return found


def _card_of(opened: OpenedRun) -> PlanCard:
    recipe = opened.recipe
    if recipe.data.per_image_standardization:
        raise ExportError(
            "plans subtract one mean from all images, and data.per_image_standardization every image's own; "
            "train without it"
        )
    return PlanCard(
        input_size=opened.input_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        class_names=opened.class_names,
        cost=opened.cost,
        about={
            "recipe": recipe.name,
            "method": method_of(recipe).name,
            "model": recipe.model.name,
            "checkpoint": opened.path.stem,
        },
    )
