"""Runs as packages: written into a folder, or uploaded to the hub."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sidestep.errors import OutputError, RecipeError
from sidestep.files import whole_folder
from sidestep.hub.package import FORMAT, OWN, Package, write_package
from sidestep.hub.places import LOCAL, local_folder
from sidestep.hub.remote import HUB, named, upload
from sidestep.results.kept_curve import BUDGETS
from sidestep.results.kept_curve import EXITS as CURVE
from sidestep.results.model_card import model_card
from sidestep.results.run_result import BENCH, REPORT, check_kept, without_folders
from sidestep.runs.run_folder import (
    ASKED,
    BIASES,
    ENVIRONMENT,
    EXITS,
    FRONTIER,
    OpenedRun,
    open_run,
)
from sidestep.training.checkpoint import load_checkpoint
from sidestep.training.metrics import METRICS, read_metrics
from sidestep.training.state import QUANTIZED
from sidestep.types import CostModel

# Of a model's keys those that say where its weights came from, as they are in a package, which has them.
_ORIGIN = {"init": None, "init_head": "load", "pretrained": False}
_TIMM = "timm/"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Where a package is.

    Attributes:
        place: as commands name it.
        url: of its page on the hub, or its folder.
        num_bytes: size of its files.
    """

    place: str
    url: str
    num_bytes: int


def push(run: Path | str, to: str, *, private: bool = False, checkpoint: str = "best") -> Pushed:
    """Write a run's network as a package that others can load, and return where it is.

    Args:
        run: a run folder.
        to: `org/name` or `org/name@branch` on the hub, which is made if it is not there, or `local-dir:` and
            the path of a new folder.
        private: whether others can see it on the hub.
        checkpoint: "best" or "last".

    Raises:
        CheckpointError: when the run holds no such checkpoint, or it is damaged.
        RecipeError: for a place that is none.
        OutputError: when the package cannot be written, or uploaded.
    """
    if not to.startswith(LOCAL):
        return _to_hub(run, to, private, checkpoint)
    if private:
        raise RecipeError(f"private has no effect on {to!r}, a folder of yours; drop it")
    folder = local_folder(to)
    with whole_folder(folder, what="package", way_out="name another one") as made:
        num_bytes = _write(open_run(run, checkpoint), checkpoint, made, f"{LOCAL}{folder.resolve().name}")
    return Pushed(place=to, url=str(folder), num_bytes=num_bytes)


def _to_hub(run: Path | str, to: str, private: bool, checkpoint: str) -> Pushed:
    place = to if to.startswith(HUB) else f"{HUB}{to}"
    repo, _ = named(place)
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = _write(open_run(run, checkpoint), checkpoint, Path(folder), place)
        _log.info("uploading %.2f MB to %s", num_bytes / 1e6, repo)
        message = f"{Path(run).name} of sidestep {version('sidestep')}, {checkpoint} checkpoint"
        url = upload(Path(folder), place, private=private, message=message)
    return Pushed(place=place, url=url, num_bytes=num_bytes)


def _write(opened: OpenedRun, checkpoint: str, folder: Path, place: str) -> int:
    """Write the package of a run, and return its size."""
    package = package_of(opened, checkpoint)
    written = write_package(folder, package, model_card(package.config, place))
    return sum(path.stat().st_size for path in written)


def package_of(opened: OpenedRun, checkpoint: str) -> Package:
    """Return the package of a run.

    Args:
        opened: the run.
        checkpoint: which one was opened.
    """
    check_kept(opened.folder)
    recipe, values = portable_recipe(opened.recipe.as_dict()), opened.values
    environment = _kept(opened.folder / ENVIRONMENT) or {}
    reports = _kept(opened.folder / REPORT)
    minutes = sum(float(row["seconds"]) for row in read_metrics(opened.folder / METRICS)) / 60
    own = {
        "format": FORMAT,
        "version": version("sidestep"),
        "commit": environment.get("commit", "unknown"),
        "recipe": recipe,
        "input_size": list(opened.input_size),
        "preparation": values.get("preparation"),
        "drawn_from": values.get("drawn_from"),
        "thresholds": values.get(EXITS),
        "asked": values.get(ASKED),
        "biases": values.get(BIASES),
        "frontier": values.get(FRONTIER),
        QUANTIZED: values.get(QUANTIZED),
        "budgets": {
            "exits": _curve(opened.folder / CURVE, checkpoint),
            "routers": _curve(opened.folder / BUDGETS, checkpoint),
        },
        "cost_book": _prices(opened.cost),
        "results": {
            "checkpoint": checkpoint,
            "report": None if reports is None else reports.get(checkpoint),
            "minutes": minutes,
            "timings": _kept(opened.folder / BENCH),
        },
        "environment": {key: environment.get(key, {}) for key in ("hardware", "versions")}
        | {"commit": environment.get("commit", "unknown")},
    }
    # Not those of the network, whose routers may have been put to a budget.
    tensors = load_checkpoint(opened.path).section("model")
    return Package(config=_timm_keys(opened) | {OWN: own}, tensors=tensors)


def portable_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe that says nothing of the disk it was trained on, and needs no files beside the package.

    Args:
        recipe: plain values of one.
    """
    values: dict[str, Any] = without_folders(recipe)
    values["model"] = _without_origin(values["model"])
    source = str(recipe["data"]["source"])
    if without_folders(source) != source:
        # What lies here is found by its name alone where the user has it too, or named with --source.
        kind = "hfds/" if source.startswith("hfds/") else ""
        values["data"]["source"] = f"{kind}./{Path(source).name}"
    return values


def _without_origin(model: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: _ORIGIN.get(key, value) for key, value in model.items()}
    if isinstance(model.get("members"), list):
        changed["members"] = [
            {**member, "weights": None, "model": _without_origin(member["model"])}
            for member in model["members"]
        ]
    return changed


def _kept(path: Path) -> Any:
    """Return the JSON that a command has left in a run folder, or None where it has not."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise OutputError(
            f"{path} is damaged ({error}); let the command that wrote it make it again"
        ) from error


def _curve(path: Path, checkpoint: str) -> Any:
    """Return the curve in a file, or None where there is none of this checkpoint."""
    curve = _kept(path)
    return curve if curve is not None and curve.get("checkpoint") == checkpoint else None


def _prices(cost: CostModel) -> dict[str, Any]:
    values = {part.name: getattr(cost, part.name) for part in fields(CostModel)}
    plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
    return plain | {"full": cost.full}


def _timm_keys(opened: OpenedRun) -> dict[str, Any]:
    """Return what timm's loaders and the hub read of a configuration."""
    data, known, count = opened.recipe.data, opened.preparation, len(opened.class_names)
    height, width = opened.input_size
    pixels = {
        "custom_load": False,
        "input_size": [data.channels, height, width],
        "fixed_input_size": False,
        "interpolation": "bilinear" if known is None else known.interpolation,
        "crop_pct": 1.0 if known is None else known.crop_share,
        "crop_mode": "center",
        "mean": list(data.mean),
        "std": list(data.std),
        "num_classes": count,
    }
    features = _num_features(opened.network.parts()["blocks"], count)
    return {
        "architecture": opened.recipe.model.name.removeprefix(_TIMM),
        "num_classes": count,
        **({} if features is None else {"num_features": features}),
        "global_pool": "avg",
        "label_names": list(opened.class_names),
        "pretrained_cfg": pixels,
    }


def _num_features(backbone: nn.Module, num_classes: int) -> int | None:
    """Return the features that the last classifier reads, or None for one that is no linear layer."""
    heads = [part for part in backbone.modules() if isinstance(part, nn.Linear)]
    widths = [head.in_features for head in heads if head.out_features == num_classes]
    return widths[-1] if widths else None
