"""Sweeps: recipes trained at every combination of settings, by one process or many.

What is to be trained, and how far it is, lies in an Optuna study, from which every worker takes the next run.
A worker that dies is noticed by its silence; its run goes on from its last checkpoint in another worker.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from torch import distributed as dist

from sidestep.data.shared_images import shared_images
from sidestep.errors import InterruptedRunError, OutputError, RecipeError, understood
from sidestep.files import made_folder
from sidestep.plugins import import_plugins, imported_plugins
from sidestep.progress import Pace
from sidestep.results.run_result import REPORT, STUDY
from sidestep.runs.combinations import SweepRun
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.run_folder import differences, recipe_of
from sidestep.runs.sweep_study import (
    HEARTBEAT_SECONDS,
    RUN,
    kept_study,
    open_study,
    requeue,
    requeue_stale,
    study_file,
)
from sidestep.runs.train import train
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.devices import Devices
from sidestep.training.interrupt import deaf_children, hear, stop_flag
from sidestep.training.loop import BEST, LAST
from sidestep.training.metrics import METRICS, read_metrics

_LOOK_SECONDS = 5.0
_ERROR, _RECIPE, _UNCHECKED = "error", "recipe", "unchecked"
_GO_ON = "the sweep was interrupted; the same command goes on with it"
_log = logging.getLogger(__name__)


class _FailedRunError(Exception):
    """A run of the sweep that cannot go on; the others do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """How far one combination is.

    Attributes:
        name: of its run folder.
        recipe: name of its recipe.
        settings: what the sweep varies, by key.
        state: "complete", "failed", "running" or "waiting".
        accuracy: of the best checkpoint on the validation split, in [0, 1]; None where nothing is held out.
        fraction: MACs of that checkpoint there, routers included, over those of the static network, or None.
        is_best: whether no other run is at least as accurate for at most the cost, as far as that is known.
        error: why it failed.
    """

    name: str
    recipe: str
    settings: dict[str, str]
    state: str
    accuracy: float | None = None
    fraction: float | None = None
    is_best: bool = False
    error: str | None = None


def sweep(
    runs: Sequence[SweepRun],
    out: Path,
    *,
    workers: int = 1,
    replicas: int = 1,
    storage: str | None = None,
    devices: Devices | None = None,
) -> list[SweepRow]:
    """Train what is left of a sweep and return how far every run is.

    Args:
        runs: what is to be trained.
        out: folder of the run folders.
        workers: processes that this one starts, each with its share of the cores; 1 starts none.
        replicas: runs that a process trains at a time. On a GPU their small kernels run side by side, each
            run on a stream of its own.
        storage: as `open_sweep` takes it.
        devices: where every run is trained.

    Raises:
        InterruptedRunError: when the user stops it.
        RecipeError: under torchrun, whose processes would share a run instead of taking one each.
        OutputError: when the study is deleted or damaged meanwhile.
    """
    if dist.is_torchelastic_launched():
        raise RecipeError("a sweep must be started without torchrun; --workers starts its processes")
    study = open_sweep(out, runs, storage)
    with kept_study(storage or str(out / STUDY)):
        if workers == 1:
            work(study, out, runs, devices, replicas=replicas)
        else:
            _start_workers(workers, _Done(study, runs), (out, runs, storage, devices, replicas))
        return sweep_rows(study, runs)


def open_sweep(out: Path, runs: Sequence[SweepRun], storage: str | None = None) -> optuna.Study:
    """Return the study of a sweep, with every run that is neither done nor under way waiting.

    Args:
        out: folder of the run folders; the study lies there too.
        runs: what is to be trained.
        storage: URL of a database instead, for workers on several machines.
    """
    with made_folder(out, what="folder of a sweep"):
        study = open_study(storage or study_file(out))
        _check_recipes(study, out, runs)
    requeue_stale(study)
    under_way = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    known = {trial.user_attrs.get(RUN) for trial in study.get_trials(deepcopy=False, states=under_way)}
    for run in runs:
        if run.name not in known:
            attributes = {RUN: run.name, "settings": json.dumps(run.settings), _RECIPE: _written(run.recipe)}
            study.enqueue_trial({}, user_attrs=attributes)
    return study


def _check_recipes(study: optuna.Study, out: Path, runs: Sequence[SweepRun]) -> None:
    """Refuse a sweep that would report runs of other settings as its own.

    Raises:
        RecipeError: naming the first run and what differs.
    """
    queued = {
        trial.user_attrs[RUN]: from_dict(json.loads(trial.user_attrs[_RECIPE]))
        for trial in study.get_trials(deepcopy=False)
        if _RECIPE in trial.user_attrs
    }
    for run in runs:
        folder = out / run.name
        before = recipe_of(folder) if (folder / LAST).is_file() else queued.get(run.name)
        if before is not None and (changed := differences(before, run.recipe)):
            raise RecipeError(
                f"run {folder} of this sweep has other settings than are asked for: {', '.join(changed)}; "
                "choose another --out, or sweep with the settings that it has"
            )


@shared_images()
def work(
    study: optuna.Study,
    out: Path,
    runs: Sequence[SweepRun],
    devices: Devices | None = None,
    *,
    replicas: int = 1,
) -> None:
    """Train the runs of a sweep, one or some at a time, until none is left, here or in other workers.

    A run that fails is recorded as failed, and the next one is taken.

    Raises:
        InterruptedRunError: when the user stops the run; the same sweep goes on with it later.
    """
    by_name = {run.name: run for run in runs}
    places = {name: place for place, name in enumerate(by_name, start=1)}
    done = _Done(study, runs)
    # Optuna forgets what is raised in the last of its threads.
    errors: list[InterruptedRunError] = []

    def objective(trial: Trial) -> tuple[float, float]:
        run = by_name.get(trial.user_attrs.get(RUN, ""))
        if run is None:
            # Another worker was faster, or this is the run of a larger sweep.
            requeue(study, trial)
            raise optuna.TrialPruned
        _log.info("run %s of %s: %s%s", places[run.name], len(runs), run.name, done.left(done.count()))
        try:
            return _train(trial, run, out / run.name, devices)
        except InterruptedRunError as error:
            errors.append(InterruptedRunError(_GO_ON))
            raise errors[-1] from error

    while True:
        mine = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(RUN) in by_name]
        states = {trial.state for trial in mine}
        if TrialState.WAITING in states:
            # Several runs are in threads, which cannot hear of an interrupt otherwise.
            with stop_flag() as stop:
                study.optimize(objective, n_trials=replicas, n_jobs=replicas, catch=(_FailedRunError,))
            if errors:
                raise errors[0]
            if stop.raised:
                # It came behind the last step of a run, which has ended well.
                raise InterruptedRunError(_GO_ON)
        elif TrialState.RUNNING in states:
            time.sleep(HEARTBEAT_SECONDS / 10)
            requeue_stale(study)
        else:
            return


class _Done:
    """How many runs of a sweep are done, whoever trains them, and how long the others take."""

    def __init__(self, study: optuna.Study, runs: Sequence[SweepRun]) -> None:
        self._study, self._names = study, {run.name for run in runs}
        self._pace = Pace()
        self._before = self._said = self.count()

    def count(self) -> int:
        """Return how many are done."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return len({trial.user_attrs.get(RUN) for trial in done} & self._names)

    def left(self, count: int) -> str:
        """Return how long the others take, as the end of a sentence; nothing where nobody can say yet."""
        return self._pace.clause(count - self._before, len(self._names) - self._before)

    def say(self) -> None:
        """Say how many are done where there are more than when it was said last."""
        if (count := self.count()) > self._said:
            self._said = count
            _log.info("%d of %d runs done%s", count, len(self._names), self.left(count))


def sweep_rows(study: optuna.Study, runs: Sequence[SweepRun]) -> list[SweepRow]:
    """Return how far every run of a sweep is, in their order."""
    latest = {
        trial.user_attrs[RUN]: trial
        for trial in study.get_trials(deepcopy=False)
        if RUN in trial.user_attrs and trial.state != TrialState.PRUNED
    }
    best = {trial.user_attrs[RUN] for trial in study.best_trials if _UNCHECKED not in trial.user_attrs}
    rows = []
    for run in runs:
        trial = latest[run.name]
        state = _state(trial)
        known = state == "complete" and _UNCHECKED not in trial.user_attrs
        accuracy, fraction = trial.values if known else (None, None)
        rows.append(
            SweepRow(
                name=run.name,
                recipe=run.recipe.name,
                settings=run.settings,
                state=state,
                accuracy=accuracy,
                fraction=fraction,
                is_best=run.name in best,
                error=trial.user_attrs.get(_ERROR),
            )
        )
    return rows


def _start_workers(workers: int, done: _Done, arguments: tuple[Any, ...]) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    plugins = imported_plugins()
    processes = [context.Process(target=_worker, args=(threads, plugins, *arguments)) for _ in range(workers)]
    with deaf_children():
        for process in processes:
            process.start()
    try:
        for process in processes:
            while process.is_alive():
                process.join(_LOOK_SECONDS)
                with suppress(OptunaError, SQLAlchemyError):
                    done.say()
    except KeyboardInterrupt:
        # The workers have been told as well; they finish their step and save it.
        for process in processes:
            process.join()
        raise InterruptedRunError(_GO_ON) from None


def _worker(
    threads: int,
    plugins: tuple[str, ...],
    out: Path,
    runs: Sequence[SweepRun],
    storage: str | None,
    devices: Devices | None,
    replicas: int,
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)
    import_plugins(plugins)
    # A spawned process would spawn its own, too, and those that decode images start faster as usual.
    multiprocessing.set_start_method(None, force=True)
    with suppress(InterruptedRunError, KeyboardInterrupt):
        hear()
        try:
            with kept_study(storage or str(out / STUDY)):
                work(open_study(storage or study_file(out)), out, runs, devices, replicas=replicas)
        except OutputError as error:
            # Nobody above this process would say it in a sentence.
            _log.error("sidestep: %s", error)


def _state(trial: FrozenTrial) -> str:
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _train(trial: Trial, run: SweepRun, folder: Path, devices: Devices | None) -> tuple[float, float]:
    """Return accuracy and cost of a run's best checkpoint on the validation split, after training it."""
    try:
        if not (folder / REPORT).is_file():
            resume = folder.is_dir() and any(folder.iterdir())
            train(run.recipe, folder, resume=resume, devices=devices)
        found = _validated(folder)
        if found is None:
            trial.set_user_attr(_UNCHECKED, True)
        # Optuna wants figures, which are shown nowhere then and beat nobody's.
        return found or (0.0, math.inf)
    except InterruptedRunError:
        raise
    except Exception as error:  # of one run: the others do not have to end with it
        meant = understood(error)
        trial.set_user_attr(_ERROR, str(meant) if meant is not None else f"{type(error).__name__}: {error}")
        if meant is None:
            _log.exception("run %s failed with an error that is no user's:", run.name)
        raise _FailedRunError from error


def _validated(folder: Path) -> tuple[float, float] | None:
    """Return accuracy and cost on the validation split, or None for a run without one."""
    step = load_checkpoint(folder / BEST).values["position"]["steps_done"]
    row = next((row for row in read_metrics(folder / METRICS) if row["step"] == step), {})
    if row.get("val") is None:
        return None
    return row["val"]["accuracy"], row["val"]["fraction_of_full"]


def _written(recipe: Recipe) -> str:
    return json.dumps(recipe.as_dict(), sort_keys=True)
