"""Sweeps: recipes trained at every combination of settings, by one process or many.

What is to be trained, and how far it is, lies in an Optuna study, from which every worker takes the next run.
A worker that dies is noticed by its silence; its run goes on from its last checkpoint in another worker.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import distributed as dist

from sidestep.errors import InterruptedRunError, RecipeError, SidestepError
from sidestep.runs.recipe import Recipe, load_recipe, method_of
from sidestep.runs.train import train
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.devices import Devices
from sidestep.training.interrupt import stop_flag
from sidestep.training.loop import BEST, LAST

STUDY = "study.db"
HEARTBEAT_SECONDS = 30
_RUN, _ERROR = "run", "error"
_SHORT_KEYS = {"seed": "training.seed"}


class _FailedRunError(Exception):
    """A run of the sweep that cannot go on; the others do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One combination of a sweep.

    Attributes:
        name: of its run folder.
        recipe: with its settings.
        settings: what the sweep varies, by key.
    """

    name: str
    recipe: Recipe
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """How far one combination is.

    Attributes:
        name: of its run folder.
        state: "complete", "failed", "running" or "waiting".
        accuracy: of the best checkpoint on the validation split, in [0, 1].
        fraction: MACs of that checkpoint there, routers included, over those of the static network.
        is_best: whether no other run is at least as accurate for at most the cost.
        error: why it failed.
    """

    name: str
    state: str
    accuracy: float | None = None
    fraction: float | None = None
    is_best: bool = False
    error: str | None = None


def sweep_runs(
    recipes: Sequence[Path | str], over: Sequence[str], overrides: Sequence[str] = ()
) -> list[SweepRun]:
    """Return every combination of recipes and settings, checked.

    Args:
        recipes: YAML files; several compare methods.
        over: "key=value,value", with keys of recipes, "seed" for training.seed, or "budget" for the setting
            that says how much a method may execute. The recipe's allowance above its budget
            (training.max_fraction) moves with it.
        overrides: of all recipes, as `load_recipe` takes them.

    Raises:
        RecipeError: when a combination is no recipe, or two have the same name.
    """
    axes = [_axis(text) for text in over]
    runs = [
        _combination(Path(recipe), dict(settings), overrides)
        for recipe in recipes
        for settings in itertools.product(*([(key, value) for value in values] for key, values in axes))
    ]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"runs of a sweep must have different names, got {name!r} {names.count(name)} times; "
                "give each value once, and recipes of one name each a sweep of its own"
            )
    return runs


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
    """
    if dist.is_torchelastic_launched():
        raise RecipeError("a sweep must be started without torchrun; --workers starts its processes")
    study = open_sweep(out, runs, storage)
    if workers == 1:
        work(study, out, runs, devices, replicas=replicas)
    else:
        _start_workers(workers, (out, runs, storage, devices, replicas))
    return sweep_rows(study, runs)


def open_sweep(out: Path, runs: Sequence[SweepRun], storage: str | None = None) -> optuna.Study:
    """Return the study of a sweep, with every run that is neither done nor under way waiting.

    Args:
        out: folder of the run folders; the study lies there too.
        runs: what is to be trained.
        storage: URL of a database instead, for workers on several machines.
    """
    out.mkdir(parents=True, exist_ok=True)
    study = _open_study(storage or _file(out))
    _requeue_stale(study)
    under_way = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    known = {trial.user_attrs.get(_RUN) for trial in study.get_trials(deepcopy=False, states=under_way)}
    for run in runs:
        if run.name not in known:
            study.enqueue_trial({}, user_attrs={_RUN: run.name, "settings": json.dumps(run.settings)})
    return study


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
    # Optuna forgets what is raised in the last of its threads.
    errors: list[Exception] = []

    def objective(trial: Trial) -> tuple[float, float]:
        run = by_name.get(trial.user_attrs.get(_RUN, ""))
        if run is None:
            # Another worker was faster, or this is the run of a larger sweep.
            _requeue(study, trial)
            raise optuna.TrialPruned
        try:
            return _train(trial, run, out / run.name, devices)
        except _FailedRunError:
            raise
        except Exception as error:
            errors.append(error)
            raise

    while True:
        mine = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(_RUN) in by_name]
        states = {trial.state for trial in mine}
        if TrialState.WAITING in states:
            # Several runs are in threads, which cannot hear of an interrupt otherwise.
            with stop_flag() as stop:
                study.optimize(objective, n_trials=replicas, n_jobs=replicas, catch=(_FailedRunError,))
            if errors:
                raise errors[0]
            if stop.raised:
                # It came behind the last step of a run, which has ended well.
                raise InterruptedRunError("the sweep was interrupted; the same command goes on with it")
        elif TrialState.RUNNING in states:
            time.sleep(HEARTBEAT_SECONDS / 10)
            _requeue_stale(study)
        else:
            return


def sweep_rows(study: optuna.Study, runs: Sequence[SweepRun]) -> list[SweepRow]:
    """Return how far every run of a sweep is, in their order."""
    latest = {
        trial.user_attrs[_RUN]: trial
        for trial in study.get_trials(deepcopy=False)
        if _RUN in trial.user_attrs and trial.state != TrialState.PRUNED
    }
    best = {trial.user_attrs[_RUN] for trial in study.best_trials}
    rows = []
    for run in runs:
        trial = latest[run.name]
        state = _state(trial)
        accuracy, fraction = trial.values if state == "complete" else (None, None)
        rows.append(
            SweepRow(
                name=run.name,
                state=state,
                accuracy=accuracy,
                fraction=fraction,
                is_best=run.name in best,
                error=trial.user_attrs.get(_ERROR),
            )
        )
    return rows


def _start_workers(workers: int, arguments: tuple[Any, ...]) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(threads, *arguments)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        # The workers have been told as well; they finish their step and save it.
        for process in processes:
            process.join()
        raise InterruptedRunError("the sweep was interrupted; the same command goes on with it") from None


def _worker(
    threads: int,
    out: Path,
    runs: Sequence[SweepRun],
    storage: str | None,
    devices: Devices | None,
    replicas: int,
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)
    # A spawned process would spawn its own, too, and those that decode images start faster as usual.
    multiprocessing.set_start_method(None, force=True)
    with suppress(InterruptedRunError):
        work(_open_study(storage or _file(out)), out, runs, devices, replicas=replicas)


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = []
    if not key or not equals or not found:
        raise RecipeError(f"over must be key=value,value, got {text!r}; for example --over seed=0,1,2")
    return key, found


def _combination(path: Path, settings: dict[str, Any], overrides: Sequence[str]) -> SweepRun:
    recipe = load_recipe(path, overrides)
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        changes |= _budget(recipe, value) if key == "budget" else {_SHORT_KEYS.get(key, key): value}
    changed = load_recipe(
        path, [*overrides, *(f"--{key}={json.dumps(value)}" for key, value in changes.items())]
    )
    parts = [recipe.name, *(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in settings.items())]
    return SweepRun(name="-".join(parts), recipe=changed, settings=settings)


def _budget(recipe: Recipe, budget: Any) -> dict[str, Any]:
    """Return what a budget changes in a recipe."""
    name = method_of(recipe).budget(recipe.settings)
    if name is None:
        raise RecipeError(
            f"budget must be one setting of the method, and {recipe.method} has none in recipe "
            f"{recipe.name!r}, got {budget!r}; sweep over the settings that decide the cost"
        )
    changes = {f"method.{name}": budget}
    allowed = recipe.training.max_fraction
    if allowed is not None and isinstance(budget, int | float):
        changes["training.max_fraction"] = round(budget + allowed - getattr(recipe.settings, name), 6)
    return changes


def _text(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


def _file(out: Path) -> str:
    return f"sqlite:///{out / STUDY}"


def _open_study(storage: str) -> optuna.Study:
    with _experimental():
        database = optuna.storages.RDBStorage(
            storage,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=2 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=_requeue,
        )
    return optuna.create_study(
        study_name="sweep", storage=database, directions=["maximize", "minimize"], load_if_exists=True
    )


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna from warning that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _requeue_stale(study: optuna.Study) -> None:
    """Put the runs of workers that have died back into the queue."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def _requeue(study: optuna.Study, trial: FrozenTrial | Trial) -> None:
    """Put the run of a trial back into the queue."""
    if _RUN in trial.user_attrs:
        study.enqueue_trial({}, user_attrs=trial.user_attrs)


def _state(trial: FrozenTrial) -> str:
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _train(trial: Trial, run: SweepRun, folder: Path, devices: Devices | None) -> tuple[float, float]:
    """Return accuracy and cost of a run's best checkpoint on the validation split, after training it."""
    try:
        if not (folder / "report.json").is_file():
            train(run.recipe, folder, resume=(folder / LAST).is_file(), devices=devices)
        return _validated(folder)
    except InterruptedRunError:
        raise
    except SidestepError as error:
        trial.set_user_attr(_ERROR, str(error))
        raise _FailedRunError from error


def _validated(folder: Path) -> tuple[float, float]:
    epoch = load_checkpoint(folder / BEST).values["position"]["epochs_done"] - 1
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[epoch])
    if row.get("val") is None:
        raise RecipeError(
            f"a sweep compares runs on the validation split, and run {folder} has none; set data.val_fraction"
        )
    return row["val"]["accuracy"], row["val"]["fraction_of_full"]
