"""Surveys of trained networks: from a text and data to what leaving units out costs and saves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import load_static_weights
from sidestep.cost.macs import measure_cost
from sidestep.data.image_set import eval_batch_size
from sidestep.data.load import Data
from sidestep.errors import RecipeError
from sidestep.evaluation.unit_survey import SurveyOf, survey_units
from sidestep.networks.models import build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.runs.latency import Way, measured
from sidestep.runs.members import (
    NamedMember,
    check_classes,
    data_for,
    exportable_member,
    is_run,
    member_of,
)
from sidestep.runs.run_folder import open_run
from sidestep.runs.sections import DATA
from sidestep.types import Batch, CostModel

_log = logging.getLogger(__name__)


def survey(
    model: str,
    *,
    data: dict[str, Any],
    split: Literal["test", "val"] = "test",
    images: int = 1000,
    pairs: bool = True,
    random_paths: int = 0,
    way: Way | None = None,
) -> SurveyOf:
    """Return what leaving units out of a trained network costs and saves.

    Args:
        model: a run folder, `cifar_resnet20=weights.safetensors`, `timm/<name>=weights.safetensors`, or
            `timm/<name>` with timm's pretrained weights. A run's units are all executed, whatever its routers
            say.
        data: keys of a recipe's `data:`; those of a run that are missing are the run's own.
        split: of the data.
        images: how many of them, evenly spread.
        pairs: whether pairs of units are tried.
        random_paths: further paths for the oracle.
        way: how units are timed, for a cost in milliseconds as well; None times none.

    Raises:
        RecipeError: for a text that names no network with units, or fewer than two images.
    """
    for name, number, least in (("images", images, 2), ("paths", random_paths, 0)):
        if number < least:
            raise RecipeError(f"{name} must be at least {least}, got {number}; 1000 images say a point")
    if is_run(model):
        data = open_run(model, "best").recipe.as_dict()["data"] | data
    errors: list[str] = []
    config = DATA.build(data, "data", errors)
    if errors:
        raise RecipeError("; ".join(errors))
    member = member_of(model, config, given=data)
    found = data_for(member, data, split)
    check_classes(member, found.class_names)
    backbone = _backbone(member, len(found.class_names))
    network = RoutedNetwork(backbone, ConstantRouter.keep([1.0] * len(backbone.units))).eval()
    cost = measure_cost(network, member.settings.input.size)
    batches = _some(found, split, images)
    # Those of a wrapped network are its own.
    names = {module: name.removeprefix("network.") for name, module in backbone.named_modules()}
    made = survey_units(
        backbone,
        batches,
        cost,
        # Units that call blocks of a wrapped network are no part of it.
        names=[names[unit.origin if unit.origin in names else unit] for unit in backbone.units],
        pairs=pairs,
        random_paths=random_paths,
    )
    timed = None if way is None else f"{way.runtime}, {way.batch_size} images per call"
    ms = None if way is None else _timed(network, cost, member, found, batches, way)
    return SurveyOf(text=model, source=str(config.source), split=split, survey=made, ms=ms, timed=timed)


def _some(data: Data, split: str, count: int) -> list[Batch]:
    """Return so many images of a split, evenly spread over it."""
    chosen = data.test if split == "test" else data.val
    if chosen is None:
        raise RecipeError(f"split must be one that the data has, got {split!r}; set data.val_fraction")
    size = eval_batch_size(data.input_size)
    every = max(1, len(chosen) // count)
    kept: list[Batch] = []
    first = 0
    for batch in chosen.eval_batches(batch_size=size):
        rows = torch.arange(-first % every, len(batch.labels), every)
        kept.append(replace(batch, images=batch.images[rows], labels=batch.labels[rows], statistics=None))
        first += len(batch.labels)
    left = count
    batches = []
    for batch in kept:
        part = replace(batch, images=batch.images[:left], labels=batch.labels[:left])
        left -= len(part.labels)
        batches += [part] if len(part.labels) else []
    return batches


def _backbone(member: NamedMember, num_classes: int) -> Backbone:
    """Return the trained network seen as stem, units and head."""
    settings = member.settings
    if member.is_run:
        network = open_run(member.text, "best").network
        backbone = getattr(network, "backbone", None)
        if not isinstance(backbone, Backbone):
            raise RecipeError(
                f"a survey needs a network whose units can be left out, got {member.text}, which is made of "
                "exits or members; survey its members alone"
            )
        return backbone.eval()
    _, _, config = settings.parts()
    backbone = build_backbone(config, num_classes, settings.input.size, len(settings.input.mean))
    if settings.weights is not None:
        for note in load_static_weights(backbone, Path(settings.weights)):
            _log.info("%s", note)
    return backbone.eval()


def _timed(
    network: RoutedNetwork,
    cost: CostModel,
    member: NamedMember,
    data: Data,
    batches: Sequence[Batch],
    way: Way,
) -> list[float]:
    """Return what every unit takes in milliseconds an image, by a latency book."""
    export = exportable_member(member, network, cost, data.class_names)
    _log.info("timing units in %s", way.runtime)
    book = measured(export, torch.cat([batch.images for batch in batches])[:32], way, {"survey": member.text})
    return (book.prices.options[:, -1] - book.prices.options[:, 0]).tolist()
