"""Where figures of a training go beside metrics.jsonl: loggers of Lightning Fabric, named or one's own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

import numpy as np
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from sidestep.errors import TrainingError
from sidestep.training.pictures import Picture, pictures_figure

# Keeps its run's id at W&B, so that a resumed run goes on there.
_WANDB_ID = "wandb_id.txt"


@runtime_checkable
class Shows(Protocol):
    """What a logger may take beside numbers."""

    def log_histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Keep how values are distributed."""

    def log_pictures(self, tag: str, pictures: Sequence[Picture], step: int) -> None:
        """Keep pictures with what the network says about them."""


class TensorBoard(TensorBoardLogger):
    """Event files in the run folder; those beyond the step that a run goes on from are hidden.

    Args:
        folder: the run folder.
        resume_step: optimiser steps already done.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        super().__init__(root_dir=folder, name="", version="", purge_step=resume_step + 1)

    @property
    def log_dir(self) -> str:
        """Return the run folder, whatever characters are in its name."""
        return self.root_dir

    def log_histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Write a histogram."""
        self.experiment.add_histogram(tag, np.asarray(values), step)

    def log_pictures(self, tag: str, pictures: Sequence[Picture], step: int) -> None:
        """Write a figure of pictures."""
        self.experiment.add_figure(tag, pictures_figure(pictures), step)


class WeightsAndBiases(Logger):
    """A run at Weights & Biases, whose own settings (WANDB_MODE, WANDB_PROJECT ...) hold; offline works too.

    Args:
        folder: the run folder; W&B writes below it.
        resume_step: optimiser steps already done; above 0 the run goes on.

    Raises:
        TrainingError: when W&B cannot start.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        import wandb

        self._wandb = wandb
        kept = folder / _WANDB_ID
        if not resume_step or not kept.is_file():
            kept.write_text(uuid4().hex[:12] + "\n")
        try:
            self.experiment = wandb.init(
                dir=str(folder),
                name=folder.name,
                id=kept.read_text().strip(),
                resume="allow",
                # Several runs of a sweep may share a process.
                reinit="create_new",
            )
        except Exception as error:  # of any kind, depending on account, network and version
            raise TrainingError(
                f"logger wandb could not start ({error}); log in with `wandb login`, set WANDB_MODE=offline, "
                "or choose --logger tensorboard"
            ) from error

    @property
    def name(self) -> str | None:
        """Return the project."""
        return str(self.experiment.project)

    @property
    def version(self) -> str | None:
        """Return the run's id."""
        return str(self.experiment.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send numbers."""
        self.experiment.log(dict(metrics), step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Send the recipe."""
        values = vars(params) if isinstance(params, Namespace) else params
        self.experiment.config.update(values, allow_val_change=True)

    def log_histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Send a histogram."""
        self.experiment.log({tag: self._wandb.Histogram(np.asarray(values))}, step=step)

    def log_pictures(self, tag: str, pictures: Sequence[Picture], step: int) -> None:
        """Send a table of pictures."""
        names = ["label", "predicted", "probability", "executed", "fraction"]
        table = self._wandb.Table(columns=["image", *names])
        for picture in pictures:
            table.add_data(self._wandb.Image(picture.pixels), *(getattr(picture, name) for name in names))
        self.experiment.log({tag: table}, step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def named_loggers(name: str, folder: Path, *, resume_step: int, recipe: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a run by name; every one has been told the recipe as far as it keeps one.

    Args:
        name: one of `devices.LOGGERS`.
        folder: the run folder.
        resume_step: optimiser steps already done.
        recipe: plain values.

    Raises:
        TrainingError: when a service cannot be reached.
    """
    if name == "tensorboard":
        return [TensorBoard(folder, resume_step=resume_step)]
    if name == "wandb":
        logger = WeightsAndBiases(folder, resume_step=resume_step)
        logger.log_hyperparams(recipe)
        return [logger]
    return []
