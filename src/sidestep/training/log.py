"""What a run writes while it trains: metrics.jsonl, figures for loggers, and progress on the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from sidestep.files import write_file
from sidestep.training.loggers import Shows
from sidestep.training.metrics import METRICS, read_metrics
from sidestep.training.pictures import Picture


class RunLog:
    """One row per epoch in metrics.jsonl and for all loggers, and a bar that shows the epoch under way.

    A resumed run continues the same file: rows beyond the checkpoint it starts from are dropped.

    Args:
        folder: the run folder.
        resume_step: optimiser steps already done; 0 starts afresh.
        active: False on processes that leave the writing to the first one.
        loggers: who gets the numbers of every epoch, and histograms and pictures where they take them.
    """

    def __init__(
        self, folder: Path, *, resume_step: int = 0, active: bool = True, loggers: Sequence[Logger] = ()
    ) -> None:
        self._active = active
        self._loggers = loggers
        self._path = folder / METRICS
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            # What a narrow terminal has no room for is cut here, and nowhere else.
            TextColumn(
                "{task.fields[figures]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(stderr=True),
            # The last column gets what the others leave.
            expand=True,
            # Only one bar can be shown at a time; of several trainings in one process none has it.
            disable=not active or threading.current_thread() is not threading.main_thread(),
        )
        self._task = self._progress.add_task("", total=1, figures="")
        if active:
            self._truncate(resume_step)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._progress.stop()
        for logger in self._loggers:
            logger.finalize("success" if kind is None else "failed")

    def begin_epoch(self, title: str, *, done: int, steps: int) -> None:
        """Start the bar of an epoch of which `done` of `steps` steps are behind."""
        self._progress.reset(self._task, description=title, total=steps, completed=done, figures="")

    def advance(self, figures: str | None = None) -> None:
        """Move the bar by one step and show the figures so far, or what was shown before."""
        if figures is not None:
            self._progress.update(self._task, figures=figures)
        self._progress.advance(self._task)

    def say(self, sentence: str) -> None:
        """Show a sentence above the bar."""
        self._progress.console.print(sentence, highlight=False, markup=False)

    def write(self, row: dict[str, Any]) -> None:
        """Append one epoch's row; nested figures become tags of loggers like train/loss."""
        if not self._active:
            return
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")
        keep_rates = (row.get("val") or {}).get("keep_rates")
        for logger in self._loggers:
            logger.log_metrics(dict(_scalars(row)), step=row["step"])
            if keep_rates and isinstance(logger, Shows):
                logger.log_histogram("val/keep_rates", keep_rates, row["step"])
        self.say(_sentence(row))

    @property
    def shows_pictures(self) -> bool:
        """Return whether some logger takes pictures."""
        return self._active and any(isinstance(logger, Shows) for logger in self._loggers)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """Give pictures to the loggers that take them."""
        for logger in self._loggers:
            if isinstance(logger, Shows):
                logger.log_pictures("val/pictures", pictures, step)

    def _truncate(self, step: int) -> None:
        rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        write_file(self._path, "".join(json.dumps(row) + "\n" for row in rows), what="metrics")


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    nested = [
        (f"{group}/{name}", value)
        for group in ("train", "val")
        for name, value in (row.get(group) or {}).items()
    ]
    return [(tag, value) for tag, value in nested if isinstance(value, int | float)]


def _sentence(row: dict[str, Any]) -> str:
    train, val = row["train"], row.get("val")
    text = f"{row['phase']} epoch {row['epoch'] + 1}: loss {train['loss']:.3f}"
    text += f", {train['images_per_s']:.0f} images/s"
    if val:
        text += f", validation {val['accuracy']:.2%} at {val['fraction_of_full']:.1%} of the MACs"
    return text
