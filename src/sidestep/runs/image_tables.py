"""Tables of what a run did with every image: made once, and kept in its folder with what they belong to."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidestep.cost.latency_book import LatencyBook, read_book
from sidestep.data.load import open_split
from sidestep.data.split import content_of
from sidestep.errors import DataError, RecipeError
from sidestep.evaluation.calibration import fit_temperatures
from sidestep.evaluation.exit_curve import ExitSurvey, survey_exits
from sidestep.evaluation.per_image import LEFT, OPTIONS, PerImage
from sidestep.evaluation.report import evaluate_network
from sidestep.evaluation.thresholds import Family, thresholds_for_budget
from sidestep.files import kept
from sidestep.networks.forward import answers_by
from sidestep.reporting.image_table import (
    CRITERION,
    GONE,
    Array,
    ImageTable,
    digest,
    read_table,
    save_table,
)
from sidestep.routing.exit_rule import scores
from sidestep.runs.at_budget import batches_of, surveys
from sidestep.runs.latency import LATENCY
from sidestep.runs.run_folder import OpenedRun
from sidestep.types import Batch, CostModel, RoutedOutput

IMAGES = "images.safetensors"
_VERSION = 3
# Budgets of the slider, as fractions of the full network: every hundredth that can be met.
_STEPS = 100
_log = logging.getLogger(__name__)


def image_table(opened: OpenedRun, source: str | None = None) -> ImageTable:
    """Return what a run does with every image of its test split, by arg-max decisions.

    The run folder keeps it; it is made anew once the checkpoint, where images leave, the images or the
    latency book are others. Of images that are gone nobody can say that they are others. Where it cannot be
    kept it is still returned, with an `UnkeptWarning`.

    Args:
        opened: the run.
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: where the data cannot be read or are others.
    """
    path, place = opened.folder / IMAGES, _book_of(opened.folder)
    rule = opened.exit_rule
    belongs = {
        "version": _VERSION,
        "checkpoint": digest(opened.path),
        "rule": None if rule is None else asdict(rule),
        "source": opened.recipe.data.source if source is None else source,
        "book": None if place is None else digest(place),
    }
    known, content = read_table(path, belongs), _content(opened, source)
    if known is not None and content in (None, known.content):
        _log.info("taking what was said of every image from %s", path)
        return known
    table = _made(opened, source, None if place is None else read_book(place), content)
    with kept():
        save_table(path, table, belongs)
        _log.info("wrote %s", path)
    return table


def _content(opened: OpenedRun, source: str | None) -> str | None:
    """Return what the images of a run's test split are known by, or None where they cannot be looked at."""
    config = opened.recipe.data if source is None else opened.recipe.data.at(source)
    try:
        split = open_split(config, "test")
    except DataError:
        return None
    return None if split is None else content_of(split)


def _book_of(folder: Path) -> Path | None:
    """Return the latency book of reports: float32 in the engine, image by image, or the first."""
    found = sorted(
        (folder / LATENCY).glob("*.json"), key=lambda path: (path.stem != "engine-float32-1", path)
    )
    return found[0] if found else None


def _made(opened: OpenedRun, source: str | None, book: LatencyBook | None, content: str | None) -> ImageTable:
    noted, tested = _noted(opened, source, book)
    cost = opened.cost
    none = np.zeros(0)
    prices = book.prices if book is not None else None
    return ImageTable(
        **_rows(noted),
        **_of_exits(opened, tested, source),
        **_prices("macs", cost),
        router_macs=cost.routers.double().numpy(),
        option_ms=none.reshape(0, 0) if prices is None else _prices("ms", prices)["option_ms"],
        head_ms=none if prices is None else _prices("ms", prices)["head_ms"],
        class_names=opened.class_names,
        full_macs=cost.full,
        fixed_macs=float(cost.fixed),
        units_before=np.array(opened.network.units_before, dtype=np.int64),
        book=None if book is None else book.name,
        fixed_ms=None if prices is None else float(prices.fixed),
        content=content,
    )


def _noted(
    opened: OpenedRun, source: str | None, book: LatencyBook | None
) -> tuple[PerImage, ExitSurvey | None]:
    """Return what was said of every image, and by all exits where one pass through them says it."""
    noted, rule, network = PerImage(opened.cost, book), opened.exit_rule, opened.network
    batches = batches_of(opened, "test", source)
    # Exits whose routers are given the budget as well have other scores at every budget.
    if not network.has_early_exits or opened.given is not None:
        classes = len(opened.class_names)
        evaluate_network(network, batches(), opened.cost, num_classes=classes, rule=rule, per_image=noted)
        return noted, None

    def note(output: RoutedOutput, batch: Batch) -> None:
        assert output.exit_logits is not None  # of a survey
        noted.add(answers_by(rule, output.exit_logits, output.decisions, network), batch)

    return noted, survey_exits(network, batches(), opened.cost, note=note)


def _rows(noted: PerImage) -> dict[str, Array]:
    """Return the columns of the table of images as arrays."""
    columns = noted.columns()
    return {
        "labels": np.array(columns["label"], dtype=np.int64),
        "predictions": np.array(columns["prediction"], dtype=np.int64),
        "confidences": np.array(columns["confidence"], dtype=np.float32),
        "paths": _options(columns["path"]),
        "routers": _numbers(columns["routers"], np.float32, dims=2),
        "exits": _numbers(columns["exit"], np.int64),
        "macs": np.array(columns["macs"], dtype=np.float64),
        "ms": _numbers(columns["ms"], np.float64),
    }


def _numbers(values: list[Any], kind: Any, dims: int = 1) -> Array:
    """Return a column as an array, an empty one where a network has nothing to say."""
    if not values or values[0] is None:
        return np.zeros((0,) * dims, dtype=kind)
    return np.array(values, dtype=kind)


def _options(paths: list[str]) -> Array:
    """Return (N, L) options of paths that are texts."""
    width = len(paths[0]) if paths else 0
    known = np.full(256, GONE, dtype=np.uint8)
    for option, letter in enumerate(OPTIONS):
        known[ord(letter)] = option
    assert LEFT not in OPTIONS
    letters = np.frombuffer("".join(paths).encode(), dtype=np.uint8)
    return known[letters].reshape(len(paths), width)


def _of_exits(opened: OpenedRun, tested: ExitSurvey | None, source: str | None) -> dict[str, Array]:
    """Return what all exits say, and the thresholds of budgets as `evaluate --budget` solves them."""
    none = np.zeros((0, 0))
    if tested is None:
        names = ("exit_scores", "exit_predictions", "exit_macs", "thresholds")
        return dict.fromkeys(names, none) | {"budgets": np.zeros(0), "temperatures": np.zeros(0)}
    held_out = opened.recipe.data.val_fraction > 0
    solved_on = surveys(opened, "val", source)[None] if held_out else None
    logits = tested.exit_logits
    temperatures = [1.0] * len(logits)
    if solved_on is not None:
        temperatures = fit_temperatures(solved_on.exit_logits, solved_on.labels)
    budgets, thresholds = _solved(solved_on, temperatures, opened.cost.full)
    return {
        "exit_scores": scores(logits, CRITERION, temperatures).numpy(),
        "exit_predictions": logits.argmax(dim=2).numpy(),
        "exit_macs": tested.macs.numpy(),
        "temperatures": np.array(temperatures),
        "budgets": np.array(budgets),
        "thresholds": np.array(thresholds, dtype=np.float64).reshape(len(budgets), len(logits) - 1),
    }


def _solved(
    survey: ExitSurvey | None, temperatures: list[float], full: float
) -> tuple[list[float], list[list[float]]]:
    """Return the fractions of the full network that can be met on a survey, and their thresholds."""
    if survey is None:
        return [], []
    table, found = survey.table(CRITERION, temperatures), []
    family = Family.of(table.scores, CRITERION)
    for fraction in (step / _STEPS for step in range(1, _STEPS + 1)):
        with suppress(RecipeError):  # a budget outside of what the exits cost
            thresholds = thresholds_for_budget(table, fraction * full, CRITERION, family=family)
            found.append((fraction, thresholds.tolist()))
    return [fraction for fraction, _ in found], [row for _, row in found]


def _prices(unit: str, cost: CostModel) -> dict[str, Array]:
    heads = torch.zeros(0) if cost.exits is None else cost.exits
    return {f"option_{unit}": cost.options.double().numpy(), f"head_{unit}": heads.double().numpy()}
