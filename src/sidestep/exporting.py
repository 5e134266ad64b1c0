"""A run's network as a file that other programs run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sidestep.assembly import Opened, open_run
from sidestep.errors import ExportError
from sidestep.evaluation.exits import ExitCalibration
from sidestep.export.network import PlanCard, export_plan
from sidestep.export.plan import save_plan
from sidestep.recipe import method_of

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
    card, known = _card_of(opened, checkpoint), opened.values.get("exits")
    rule = None if known is None else ExitCalibration(**known).rule
    plan = export_plan(opened.network, card, rule)
    path = opened.path.with_suffix(".plan") if out is None else Path(out)
    return Exported(path=path, num_bytes=save_plan(path, plan), num_units=plan.num_units)


def _card_of(opened: Opened, checkpoint: str) -> PlanCard:
    recipe = opened.recipe
    if recipe.data.per_image_standardization:
        raise ExportError(
            "plans subtract one mean from all images, and data.per_image_standardization every image's own; "
            "train without it"
        )
    height, width = opened.values["input_size"]
    return PlanCard(
        input_size=(height, width),
        mean=recipe.data.mean,
        std=recipe.data.std,
        class_names=tuple(opened.values["class_names"]),
        cost=opened.cost,
        about={
            "recipe": recipe.name,
            "method": method_of(recipe).name,
            "model": recipe.model.name,
            "checkpoint": checkpoint,
        },
    )
