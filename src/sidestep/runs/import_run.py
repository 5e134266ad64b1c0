"""Checkpoints of the papers' released codes made into run folders."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.backbones.static_weights import differences
from sidestep.data import Data, load_data
from sidestep.errors import CheckpointError, RecipeError
from sidestep.files import made_folder, write_file
from sidestep.hub.released_code import Found, ReleasedCode, find_network
from sidestep.hub.released_dense import DENSE_CODES
from sidestep.hub.released_resnets import RESNET_CODES
from sidestep.networks.network import DynamicNetwork
from sidestep.registry import Registry
from sidestep.results.run_result import REPORT
from sidestep.runs.assemble import untrained
from sidestep.runs.evaluate import evaluate
from sidestep.runs.recipe import Recipe, overridden, recipe_values
from sidestep.runs.run_folder import check_startable, start_run_folder, whole_or_none
from sidestep.runs.run_lock import locked
from sidestep.training.checkpoint import save_checkpoint
from sidestep.training.loop import BEST, LAST
from sidestep.training.metrics import METRICS
from sidestep.training.state import TrainingState

CODES: Registry[ReleasedCode] = Registry("released code", [*RESNET_CODES, *DENSE_CODES], key="as")
_NOT_COUNTED = "num_batches_tracked"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A run that a checkpoint was made into.

    Attributes:
        folder: its run folder.
        report: on the test split, as plain values.
    """

    folder: Path
    report: dict[str, Any]


def import_run(file: Path | str, code: str, out: Path | str, overrides: Sequence[str] = ()) -> Imported:
    """Make a run folder of a checkpoint that a paper's released code has saved, and report on the test split.

    What the file says (depth, classes, kind of gate, sizes of dense networks) becomes the recipe; all else is
    that of the paper's recipe, which `sidestep train --resume` would go on with. Decisions are those without
    noise.

    Args:
        file: as `torch.save` has left it; nothing but tensors and plain values is loaded.
        code: whose it is, see `CODES`.
        out: the run folder.
        overrides: keys of the recipe that the file does not say, such as "--data.source", "FOLDER".

    Raises:
        CheckpointError: when the file is missing or damaged, or holds no such network.
        RecipeError: for an unknown code, or data with other classes.
    """
    released, folder = CODES[code], Path(out)
    with made_folder(folder, what="run folder"), locked(folder):
        check_startable(folder)
        found = find_network(released, Path(file))
        recipe = _recipe(found, folder.name, overrides)
        data = load_data(recipe.data, splits=["test"])
        if data.num_classes != found.num_classes:
            raise RecipeError(
                f"data.source {recipe.data.source!r} must have the {found.num_classes} classes of {file}, "
                f"got {data.num_classes}; name their data with --data.source"
            )
        network = untrained(recipe, num_classes=found.num_classes, input_size=data.input_size)
        _fill(network, found, f"weights {file} as {code}")
        with whole_or_none(folder):
            _write(folder, recipe, network, data)
            return Imported(folder=folder, report=_reported(folder))


def _recipe(found: Found, name: str, overrides: Sequence[str]) -> Recipe:
    values = recipe_values(found.recipe) | {"name": name}
    values["model"] = {key: value for key, value in values["model"].items() if key != "init"}
    return overridden(
        _merged(values, found.changes), overrides, f"the recipe {found.recipe} with what the file says"
    )


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with changes of some, group by group."""
    merged = dict(values)
    for key, change in changes.items():
        deep = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], change) if deep else change
    return merged


def _fill(network: DynamicNetwork, found: Found, source: str) -> None:
    """Put the tensors of a file into a network.

    Raises:
        CheckpointError: naming the first difference.
    """
    own = network.state_dict()
    # Batches were not counted before torch 0.4.1.
    tensors: dict[str, Tensor] = {name: tensor for name, tensor in own.items() if name.endswith(_NOT_COUNTED)}
    tensors |= {
        name: tensor
        for name, tensor in found.tensors.items()
        if name in own or not re.fullmatch(found.unbuilt, name)
    }
    if differing := differences(own, tensors):
        raise CheckpointError(
            f"{source} do not fit: the file {next(iter(differing.values()))}; name what it does not say with "
            "a key of the recipe, such as --model.reduction 0.5"
        )
    network.load_state_dict(tensors)
    network.eval()


def _write(folder: Path, recipe: Recipe, network: DynamicNetwork, data: Data) -> None:
    start_run_folder(folder, recipe)
    write_file(folder / METRICS, "", what="metrics")
    values = {
        "recipe": recipe.as_dict(),
        "class_names": list(data.class_names),
        "input_size": list(data.input_size),
        "preparation": data.preparation.as_dict(),
        "drawn_from": None,
    }
    checkpoint = TrainingState(network, ema_decay=0.0).checkpoint(None, values)
    for name in (BEST, LAST):
        save_checkpoint(folder / name, checkpoint)


def _reported(folder: Path) -> dict[str, Any]:
    report = evaluate(folder).as_dict()
    write_file(folder / REPORT, json.dumps({"best": report, "last": report}, indent=1) + "\n", what="report")
    return report
