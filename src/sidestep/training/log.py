"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and progress on the terminal."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """One row per epoch in metrics.jsonl and TensorBoard, and a bar that shows the epoch under way.

    A resumed run continues the same file: rows beyond the checkpoint it starts from are dropped.

    Args:
        folder: the run folder.
        resume_step: optimiser steps already done; 0 starts afresh.
        active: False on processes that leave the writing to the first one.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, active: bool = True) -> None:
        self._active = active
        self._path = folder / "metrics.jsonl"
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # Only one bar can be shown at a time; of several trainings in one process none has it.
            disable=not active or threading.current_thread() is not threading.main_thread(),
        )
        self._task = self._progress.add_task("", total=1, figures="")
        self._events: SummaryWriter | None = None
        if active:
            self._truncate(resume_step)
            self._events = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        if self._events is not None:
            self._events.close()

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
        self._progress.console.print(sentence, highlight=False)

    def write(self, row: dict[str, Any]) -> None:
        """Append one epoch's row; nested figures become TensorBoard tags like train/loss."""
        if not self._active:
            return
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is not None:
            for tag, value in _scalars(row):
                self._events.add_scalar(tag, value, row["step"])
        self.say(_sentence(row))

    def _truncate(self, step: int) -> None:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self._path.write_text("".join(line + "\n" for line in kept))


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
