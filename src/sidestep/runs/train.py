"""Training of a recipe into a run folder."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger

from sidestep.data.image_set import ImageSet, shown_batches
from sidestep.evaluation.report import evaluate_network
from sidestep.files import kept, made_folder, write_file
from sidestep.fused.training_execution import training_execution
from sidestep.results.figures import save_keep_rates
from sidestep.results.kept_curve import save_budget_curve
from sidestep.results.run_result import REPORT
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.runs.assemble import job_of, seeded
from sidestep.runs.at_budget import curve_of_routers, tenths
from sidestep.runs.image_tables import report_and_keep
from sidestep.runs.recipe import Recipe, load_recipe
from sidestep.runs.run_data import check_same_data
from sidestep.runs.run_folder import check_startable, open_run, resumable, start_run_folder
from sidestep.runs.run_lock import locked
from sidestep.training.checkpoint import Checkpoint
from sidestep.training.devices import Devices
from sidestep.training.distributed import all_succeed, named_errors
from sidestep.training.loggers import named_loggers
from sidestep.training.loop import Job, fit

_log = logging.getLogger(__name__)

# Trainings may share a process, and whatever builds a network draws weights from torch's one generator.
_one_at_a_time = threading.Lock()


def train(
    recipe: Recipe | Path | str,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    devices: Devices | None = None,
    loggers: Sequence[Logger] = (),
) -> Path:
    """Train a recipe into a run folder and return the folder.

    A folder has one writer. What a run has left that ended before its first checkpoint is started anew.

    Args:
        recipe: a recipe, the path of one, or the name of one that comes with sidestep.
        out: the run folder, `runs/<recipe name>` by default.
        resume: go on with the interrupted run in that folder.
        devices: where; one process by default, or those of torchrun.
        loggers: of Lightning Fabric, that get the figures of every epoch beside the one that `devices` names;
            those that have the methods of `training.loggers.Shows` get histograms and pictures too.

    Raises:
        SidestepError: for anything that cannot work, before a file is written.
        RunLockedError: when another process trains into the folder.
        InterruptedRunError: after an interrupt, in all processes alike.
        LostProcessError: when another process has ended.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    devices = devices or Devices()
    with devices.launched(recipe.training.precision) as fabric, named_errors(fabric), ExitStack() as stack:
        stack.enter_context(_seeded_alone(recipe.training.seed, fabric.device))
        checkpoint = all_succeed(fabric, lambda: _claimed(folder, recipe, resume, fabric, stack))
        with _one_at_a_time:
            job = all_succeed(fabric, lambda: _job(recipe, fabric, checkpoint))
            execution = stack.enter_context(
                training_execution(job.network, devices.compile, macs=job.forward_macs, fabric=fabric)
            )
        if fabric.is_global_zero:
            start_run_folder(folder, recipe)
        fabric.barrier()
        named = partial(named_loggers, devices.logger, folder, recipe=recipe.as_dict())
        fit(
            job,
            folder,
            fabric,
            resume=checkpoint,
            graph=devices.graph,
            execution=execution,
            loggers=lambda steps: [*named(resume_step=steps), *loggers],
        )
        if fabric.is_global_zero:
            with _one_at_a_time:
                _report(folder, job, fabric)
        fabric.barrier()
    return folder


@contextmanager
def _seeded_alone(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, and give them back, while no other training draws weights from them."""
    with ExitStack() as stack:
        with _one_at_a_time:
            stack.enter_context(seeded(seed, device))
        try:
            yield
        finally:
            with _one_at_a_time:
                stack.close()


def _claimed(
    folder: Path, recipe: Recipe, resume: bool, fabric: Fabric, stack: ExitStack
) -> Checkpoint | None:
    """Make this run the one writer of its folder, and return the checkpoint that it goes on with."""
    if resume and not folder.is_dir():
        return resumable(folder, recipe)
    if fabric.is_global_zero:
        stack.enter_context(made_folder(folder, what="run folder"))
        stack.enter_context(locked(folder))
        if not resume:
            check_startable(folder)
    return resumable(folder, recipe) if resume else None


def _job(recipe: Recipe, fabric: Fabric, checkpoint: Checkpoint | None) -> Job:
    """Return what is trained, on the images that an interrupted run has seen."""
    _log.info("reading the images of %s", recipe.data.source)
    job = job_of(recipe, fabric)
    if recipe.training.phases:
        epochs = sum(job.epochs(phase) for phase in recipe.training.phases)
        count = f"{len(job.data.train or ()):,}"
        _log.info("training on %s images, %d epoch%s", count, epochs, "s" * (epochs != 1))
    if checkpoint is not None:
        check_same_data(checkpoint, job.data, recipe.data.source)
    return job


def _report(folder: Path, job: Job, fabric: Fabric) -> None:
    """Report best and last checkpoint on the test split, which nothing was chosen on."""
    if job.data.test is None:
        return
    reports = {}
    # Where nothing is trained both are the same.
    for name in ("best", "last") if job.config.phases else ("best",):
        _log.info("evaluating the %s checkpoint on %s test images", name, f"{len(job.data.test):,}")
        opened, batches = open_run(folder, name), shown_batches(job.data.test, job.data.input_size)
        if name == "best" and fabric.device.type == "cpu":
            # What reports show is what was said here; other devices round otherwise than `evaluate` does.
            val = None if job.data.val is None else partial(shown_batches, job.data.val, opened.input_size)
            report = report_and_keep(opened, batches, split=job.data.test_split, val=val)
        else:
            network = opened.network.to(fabric.device)
            report = evaluate_network(network, batches, opened.cost, num_classes=job.data.num_classes)
        reports[name] = report.as_dict()
    reports.setdefault("last", reports["best"])
    write_file(folder / REPORT, json.dumps(reports, indent=1) + "\n", what="report")
    if reports["best"]["keep_rates"]:
        with kept():
            save_keep_rates(folder / "keep_rates.png", reports["best"], list(job.data.class_names))
    if isinstance(job.network.router, BudgetedRouter) and not job.network.has_early_exits:
        _report_budgets(folder, job.data.test, fabric)


def _report_budgets(folder: Path, test: ImageSet, fabric: Fabric) -> None:
    """Leave the curve of a network for all budgets, at every tenth of the full network's MACs."""
    opened = open_run(folder, "best")
    opened.network.to(fabric.device)
    _log.info("evaluating budgets")
    batches = partial(shown_batches, test, opened.input_size)
    curve = curve_of_routers(opened, tenths(opened), batches)
    with kept():
        save_budget_curve(folder, curve, "best")
