"""The study of a sweep: the database from which workers take their runs, and into which runs go back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.trial import FrozenTrial, Trial
from sqlalchemy import Connection, event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sidestep.errors import OutputError, RecipeError, first_line
from sidestep.results.run_result import STUDY

HEARTBEAT_SECONDS = 30
# The name of a trial's run.
RUN = "run"


def study_file(out: Path) -> str:
    """Return the URL of the study in a sweep's folder."""
    return f"sqlite:///{out / STUDY}"


def open_study(storage: str) -> optuna.Study:
    """Return the study at the URL of a database, a new one where there is none.

    Raises:
        RecipeError: when it does not open.
    """
    try:
        with _experimental():
            database = optuna.storages.RDBStorage(
                storage,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=2 * HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=requeue,
            )
            _serialise(database)
        return optuna.create_study(
            study_name="sweep", storage=database, directions=["maximize", "minimize"], load_if_exists=True
        )
    except (ArgumentError, SQLAlchemyError, OptunaError, ImportError, ValueError) as error:
        raise RecipeError(
            f"storage must be the URL of a database that opens, got {storage!r} ({first_line(error)}); "
            "leave it out for a file in --out, or remove that file if it is damaged"
        ) from error


def _serialise(database: optuna.storages.RDBStorage) -> None:
    """Let one worker at a time into an SQLite file, from its first read to its last write.

    SQLite ignores the row locks with which Optuna takes a waiting run. Two workers that read it at the same
    time would both train it, and the one that finds the run folder locked would record it as failed.
    """
    if database.engine.dialect.name != "sqlite":
        return

    @event.listens_for(database.engine, "begin")
    def lock(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * HEARTBEAT_SECONDS}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna from warning that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def requeue_stale(study: optuna.Study) -> None:
    """Put the runs of workers that have died back into the queue."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def requeue(study: optuna.Study, trial: FrozenTrial | Trial) -> None:
    """Put the run of a trial back into the queue."""
    if RUN in trial.user_attrs:
        study.enqueue_trial({}, user_attrs=trial.user_attrs)


@contextmanager
def kept_study(place: str) -> Iterator[None]:
    """Say in a sentence that a study has gone while its runs were trained."""
    try:
        yield
    except Exception as error:
        lost = _of_database(error)
        if lost is None:
            raise
        raise OutputError(
            f"study {place} of a sweep must stay until its runs are done, and cannot be written any more "
            f"({first_line(lost)}); start the same sweep again, which finds its runs by their folders"
        ) from error


def _of_database(error: BaseException | None) -> BaseException | None:
    """Return the error of a database among those that led to one; Optuna trips over its own records then."""
    while error is not None and not isinstance(error, SQLAlchemyError | StorageInternalError):
        error = error.__cause__ or error.__context__
    return error
