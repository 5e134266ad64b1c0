"""Commands about plans: export, run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.console import Console

from sidestep.cli.groups import Trained
from sidestep.cli.tables import predictions_table, quantisation_table, show
from sidestep.errors import UsageError


def export(
    run: Path,
    *,
    to: str = "plan",
    segments: int | None = None,
    out: Path | None = None,
    budget: float | None = None,
    precision: Literal["float32", "int8"] = "float32",
    calibrate: int | None = None,
    trained: Trained,
) -> None:
    """Write a run's network for other programs to run.

    Args:
        run: run folder, package such as hf-hub:org/name, or a file that `sidestep.save` has written.
        to: format: plan, see docs/plan.md; onnx, onnx-if, torch or triton, see docs/segments.md; timm,
            see docs/hub.md; or a registered one.
        segments: that an image runs at most, of a network with units; the rest is frozen (default: 8).
        out: file or folder (default: best.plan, or the like, in the run folder).
        budget: mean MACs as a fraction of the full network's (default: what calibrate has kept).
        precision: int8 makes bytes of weights and maps of a plan, see docs/quantisation.md.
        calibrate: number of validation images that int8 is calibrated on (default: 512).
        trained: which weights, and data that decides: for a budget of exits, what is frozen, and int8.
    """
    from sidestep.runs.export import export_run

    written = export_run(
        run,
        out,
        to=to,
        segments=segments,
        checkpoint=trained.checkpoint,
        budget=budget,
        source=trained.source,
        precision=precision,
        calibrate=calibrate,
    )
    if written.quantisation is not None:
        Console().print(quantisation_table(written.quantisation.as_dict(), str(run)))
    size = f"{written.num_bytes / 1e6:.2f} MB"
    print(f"wrote {written.path}: {size}, {written.summary}")


def run(
    plan: Path,
    images: list[Path],
    *,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    budget: float | None = None,
    json: bool = False,
) -> None:
    """Run a plan on pictures, in the native engine.

    Args:
        plan: file that `sidestep export` has written.
        images: files of pictures.
        precision: of the engine.
        budget: mean MACs as a fraction of the full network's, of a plan with budgets (default: its own).
        json: print one JSON object and nothing else.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"--budget must be above 0 and finite, got {budget}; 0.5 is half of the network")
    from sidestep.targets.run_plan import run_plan

    found = run_plan(plan, images, precision=precision, budget=budget)
    show([asdict(prediction) for prediction in found], predictions_table(found, str(plan)), json)
