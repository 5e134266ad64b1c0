"""Run folders: what lies in one, opened again, and what a new training may write into.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, TensorBoard events, `last.safetensors` and
`best.safetensors`, `environment.json`, after the last epoch `report.json`, for networks with units
`keep_rates.png` and for those for all budgets `budgets.json`, `budgets.csv` and `budgets.png`; `bench` leaves
what it measured last as `bench.json`, and `curve` `exits.json`, `exits.csv` and `exits.png`, or those of
budgets. What was said of every test image is `images.safetensors` (`image_tables`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sidestep.backbones.static_weights import load_weights
from sidestep.cost.macs import measure_cost
from sidestep.data.data_config import DataConfig
from sidestep.data.preparation import Preparation, preparation_from
from sidestep.errors import CheckpointError, ExecutionError, RecipeError, RunLockedError, typed
from sidestep.evaluation.environment import describe_environment
from sidestep.evaluation.exit_curve import ExitCalibration
from sidestep.files import write_file
from sidestep.hub.package import CONFIG
from sidestep.hub.places import LOCAL, run_folder_of
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.routing.dial import DialledRouter, Frontier, are_biases, frontier_from, without_dial
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.run_lock import LOCK
from sidestep.training.checkpoint import Checkpoint, load_checkpoint
from sidestep.training.loop import BEST, LAST
from sidestep.training.metrics import METRICS
from sidestep.types import CostModel

# Where a checkpoint keeps what `calibrate` has found, and the budgets of gates that `curve` has.
EXITS, ASKED, BIASES, FRONTIER = "exits", "asked", "biases", "frontier"

ENVIRONMENT = "environment.json"
_RECIPE = "recipe.yaml"
_BEFORE_LEARNING = {_RECIPE, ENVIRONMENT, METRICS, "wandb", "wandb_id.txt"}
# The images behind a source are compared themselves.
_NOT_LEARNT = {"version", "name", "data.source", "data.root", "data.workers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """A run's network with its trained weights, in evaluation mode, and what belongs to it.

    Attributes:
        path: of the checkpoint.
        recipe: of the run.
        network: the network.
        cost: its price list.
        values: plain values of the checkpoint.
        given: routers that are given the budget, of a network for all budgets; `network` has them at one.
    """

    path: Path
    recipe: Recipe
    network: DynamicNetwork
    cost: CostModel
    values: dict[str, Any]
    given: BudgetedRouter | None = None

    def data_from(self, source: str | None) -> DataConfig:
        """Return the settings of the run's data, as they are where it lies elsewhere now."""
        return self.recipe.data if source is None else self.recipe.data.at(source)

    def routers(self) -> BudgetedRouter:
        """Return the routers that are given the budget.

        Raises:
            ExecutionError: for a network for one budget.
        """
        if self.given is None:
            raise ExecutionError(
                "a budget of routers needs a network for all budgets, got one for one; train it with "
                "method.budgets.low"
            )
        return self.given

    def ask(self, asked: float) -> None:
        """Let the routers of a network for all budgets decide at one of them from now on."""
        device = next(self.network.parameters()).device
        self.network.router = self.routers().at(asked).to(device)

    def turn(self, biases: Sequence[float] | None) -> None:
        """Let gates for one budget decide with (L) biases from now on, or as they were trained."""
        plain = without_dial(self.network.router)
        if plain is None or biases is None:
            self.network.router = plain
            return
        device = next(self.network.parameters()).device
        self.network.router = DialledRouter(plain, biases, self.network.num_options).to(device).eval()

    def budgets(self, count: int) -> list[float]:
        """Return evenly spaced budgets of the routers, rising; none where they are given none."""
        if self.given is None:
            return []
        return torch.linspace(self.given.low, 1, count, dtype=torch.float64).tolist()

    @property
    def folder(self) -> Path:
        """Return the run folder, where commands keep what they find."""
        return self.path.parent

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the network's outputs."""
        return tuple(self.values["class_names"])

    @property
    def input_size(self) -> tuple[int, int]:
        """Return height and width of the images."""
        height, width = self.values["input_size"]
        return height, width

    @property
    def preparation(self) -> Preparation | None:
        """Return how pictures become what the network sees, or None for a run that did not note it."""
        known = self.values.get("preparation")
        return None if known is None else preparation_from(known)

    @property
    def frontier(self) -> Frontier | None:
        """Return the budgets of gates that `curve` has left in the checkpoint, if it has.

        Raises:
            CheckpointError: when they do not fit the network.
        """
        known = self.values.get(FRONTIER)
        if known is None:
            return None
        try:
            return frontier_from(known, len(self.network.units))
        except ExecutionError as error:
            raise CheckpointError(f"checkpoint {self.path}: {error}") from error

    @property
    def exit_rule(self) -> ExitRule | None:
        """Return the exit rule that `calibrate` has left in the checkpoint, if it has."""
        known = self.values.get(EXITS)
        return None if known is None else ExitCalibration(**known).rule


def open_run(run: Path | str, name: str) -> OpenedRun:
    """Return a run's network, from its "best" or "last" checkpoint.

    Args:
        run: a run folder, or a package as `run_folder_of` takes it.
        name: of the checkpoint.

    Raises:
        CheckpointError: when the folder holds no such checkpoint, or it is damaged.
    """
    run = run_folder_of(run)
    path = run / {"best": BEST, "last": LAST}.get(name, name)
    if not path.is_file():
        raise _no_run(run, path.name)
    checkpoint = load_checkpoint(path)
    recipe = from_dict(checkpoint.values["recipe"], str(path))
    height, width = checkpoint.values["input_size"]
    network = untrained(recipe, num_classes=len(checkpoint.values["class_names"]), input_size=(height, width))
    load_weights(network, checkpoint.section("model"), f"checkpoint {path}")
    network.eval()
    given = network.router if isinstance(network.router, BudgetedRouter) else None
    if given is not None:
        network.router = given.at(checkpoint.values.get(ASKED, given.asked))
    cost = measure_cost(network, (height, width))
    opened = OpenedRun(
        path=path, recipe=recipe, network=network, cost=cost, values=checkpoint.values, given=given
    )
    if (biases := checkpoint.values.get(BIASES)) is not None:
        if not are_biases(biases, len(network.units)):
            raise CheckpointError(
                f"checkpoint {path} must have a bias for every unit, and has not; calibrate the run again"
            )
        opened.turn(biases)
    return opened


def _no_run(run: Path, wanted: str) -> CheckpointError:
    """Return the error of a folder that holds no checkpoint, or of something that is no folder."""
    if run.is_file():
        return CheckpointError(
            f"run {run} must be a run folder, got a file; name the folder that `sidestep train` has written"
        )
    if not run.is_dir():
        return CheckpointError(
            f"run {run} must be a run folder, and there is none; `sidestep train RECIPE --out {typed(run)}` "
            "makes it"
        )
    if (run / BEST).is_file():
        return CheckpointError(
            f"run {run} must hold {wanted}, and has {BEST} alone, as packages do; leave out the checkpoint"
        )
    if (run / CONFIG).is_file():
        return CheckpointError(f"run {run} must be a run folder, and is a package; name it {LOCAL}{run}")
    if (run / _RECIPE).is_file():
        return CheckpointError(
            f"run {run} must hold {wanted}, and its training ended before; go on with "
            f"`sidestep train {typed(run / _RECIPE)} --out {typed(run)} --resume`"
        )
    return CheckpointError(
        f"run {run} must be a run folder with {wanted}, and has none; name the folder that `sidestep train` "
        "has written"
    )


def check_startable(folder: Path) -> None:
    """Return if a new run can have a folder: one that is empty, or that a run has left before it had learnt.

    Raises:
        RecipeError: for a folder that holds anything else.
    """
    if leftovers(folder) is None:
        raise RecipeError(
            f"run folder {folder} must be empty or new, and it is not; "
            "choose another with --out, or go on with --resume"
        )


def leftovers(folder: Path) -> list[Path] | None:
    """Return what a run that ended before its first checkpoint has left in a folder, or None.

    None stands for a folder with a checkpoint, or with files that no run has written.
    """
    found = [path for path in folder.iterdir() if path.name != LOCK]
    known = found and (folder / _RECIPE).is_file() and all(map(_is_leftover, found))
    return found if known or not found else None


def start_run_folder(folder: Path, recipe: Recipe) -> None:
    """Write the recipe and what it is run with into the folder of a run, and remove what is left of a try."""
    for path in leftovers(folder) or []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_file(folder / _RECIPE, yaml.safe_dump(recipe.as_dict(), sort_keys=False), what="recipe")
    write_file(folder / ENVIRONMENT, json.dumps(describe_environment(), indent=1) + "\n", what="environment")


@contextmanager
def whole_or_none(folder: Path) -> Iterator[None]:
    """Take away what a command has left in a run folder that had no weights before, when it is not done.

    A run that nothing trains cannot be resumed: half of it would be in the way of the next try.
    """
    stood, had_weights = folder.is_dir(), (folder / BEST).is_file()
    try:
        yield
    except RunLockedError:
        raise
    except BaseException:
        if not had_weights and (folder / BEST).is_file():
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not stood:
                folder.rmdir()
        raise


def resumable(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """Return the checkpoint with which a recipe's interrupted run goes on.

    None is returned where the run had ended before it had one, and starts anew.

    Raises:
        CheckpointError: when the folder holds no run.
        RecipeError: when it is that of settings that learn something else, naming them.
    """
    if not (folder / LAST).is_file():
        if folder.is_dir() and leftovers(folder):
            return None
        raise CheckpointError(
            f"run {folder} must hold {LAST} to be resumed, got none; start without --resume"
        )
    checkpoint = load_checkpoint(folder / LAST)
    # Compared as recipes, so that a setting that came later has its default in an older run.
    if changed := differences(from_dict(checkpoint.values["recipe"], str(folder / LAST)), recipe):
        raise RecipeError(
            f"run {folder} was started with other settings than recipe {recipe.name!r} has now: "
            f"{', '.join(changed)}; resume it with its own recipe ({folder / _RECIPE}) and without overrides"
        )
    return checkpoint


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe that the last checkpoint of a run folder was trained with."""
    return from_dict(load_checkpoint(folder / LAST).values["recipe"], str(folder / LAST))


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Return the settings in which two recipes learn something else, with both values.

    How a run is called, where its data lies and how many processes read it changes nothing that is learnt.
    """
    old, new = _flat(before.as_dict()), _flat(now.as_dict())
    return [
        f"{key} {_said(old, key)} there and {_said(new, key)} here"
        for key in dict.fromkeys([*old, *new])
        if key not in _NOT_LEARNT and old.get(key) != new.get(key)
    ]


def _is_leftover(path: Path) -> bool:
    return path.name in _BEFORE_LEARNING or path.name.startswith("events.out.tfevents.")


def _flat(values: Any, place: str = "") -> dict[str, Any]:
    """Return plain values by their keys with dots; empty groups have none."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in items:
        name = f"{place}.{key}" if place else str(key)
        flat |= _flat(value, name) if isinstance(value, dict | list) and value else {name: value}
    return flat


def _said(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
