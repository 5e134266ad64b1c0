"""Runs in INT8: their plan on bytes, calibrated on validation images, and what that costs on test images."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sidestep.errors import ExportError, RecipeError
from sidestep.files import write_file
from sidestep.plan.format import Plan, save_plan
from sidestep.quantisation.comparison import QuantisationReport, compare
from sidestep.quantisation.sensitivity import Quantised, quantise
from sidestep.quantisation.trained import quantise_trained
from sidestep.runs.at_budget import batches_of
from sidestep.runs.run_folder import OpenedRun
from sidestep.targets.export_target import Exportable, plan_with_maps_of
from sidestep.training.state import layout_of

# Images that ranges are found on where no other number is asked for.
CALIBRATION_IMAGES = 512
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedRun:
    """A run's plan, in float32 and on bytes.

    Attributes:
        real: in float32.
        found: the same on bytes, and how it came about.
        num_images: that it was calibrated on.
    """

    real: Plan
    found: Quantised
    num_images: int


def quantised_run(
    opened: OpenedRun, export: Exportable, *, count: int = CALIBRATION_IMAGES, source: str | None = None
) -> QuantisedRun:
    """Return a run's plan on bytes, calibrated on the first images of its validation split.

    Args:
        opened: the run.
        export: what an export target gets of it.
        count: of images.
        source: where the data lies now, if not where the recipe says.

    Raises:
        ExportError: for a network that no plan can express.
        RecipeError: for a run without a validation split, or a count below 1.
    """
    batches = calibration_batches(opened, count, source)
    plan, found = quantised_plan(opened, export, batches)
    return QuantisedRun(real=plan, found=found, num_images=sum(map(len, batches)))


def quantised_plan(
    opened: OpenedRun, export: Exportable, batches: Sequence[Tensor]
) -> tuple[Plan, Quantised]:
    """Return a run's plan in float32 and on bytes, in the ranges that a training has left, if one has.

    Args:
        opened: the run.
        export: what an export target gets of it.
        batches: (B, C, H, W) normalised images that it is calibrated on.

    Raises:
        ExportError: for a network that no plan can express.
        CheckpointError: for ranges that are damaged.
    """
    plan, maps = plan_with_maps_of(export)
    layout = layout_of(opened.values)
    if layout is None:
        return plan, quantise(plan, batches)
    return plan, quantise_trained(plan, export.network, maps, batches, layout)


def calibration_batches(opened: OpenedRun, count: int, source: str | None) -> list[Tensor]:
    """Return the first images of a run's validation split, or all of them, in batches.

    Raises:
        RecipeError: for a run without one, or a count below 1.
    """
    if count < 1:
        raise RecipeError(f"calibrate must be at least 1 image, got {count}; 512 are usual")
    found: list[Tensor] = []
    for batch in batches_of(opened, "val", source)():
        found.append(batch.images[: count - sum(map(len, found))].cpu())
        if sum(map(len, found)) == count:
            break
    return found


def write_quantised(
    opened: OpenedRun, export: Exportable, path: Path, *, count: int, source: str | None
) -> QuantisationReport:
    """Write a run's plan on bytes, beside it as JSON what it costs on the test split, and return that.

    Args:
        opened: the run.
        export: what an export target gets of it.
        path: of the plan.
        count: of images to calibrate on.
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: as `quantised_run`, or for a file that cannot be written.
    """
    run = quantised_run(opened, export, count=count, source=source)
    _log.info("comparing it with float32 on the test split")
    real, quantised, change = compare(
        run.real,
        run.found.plan,
        batches_of(opened, "test", source)(),
        opened.cost,
        num_classes=len(opened.class_names),
    )
    report = QuantisationReport(
        calibrated_on=run.num_images,
        real=real,
        quantised=quantised,
        change=change,
        num_bytes=len(run.real.as_bytes()),
        num_bytes_quantised=save_plan(path, run.found.plan),
        layers=run.found.layers,
    )
    text = json.dumps(report.as_dict(), indent=1) + "\n"
    way_out = "choose another plan with --out, or free some space"
    write_file(path.with_suffix(".json"), text, what="report", way_out=way_out, error=ExportError)
    return report
