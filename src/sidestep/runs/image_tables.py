"""Tables of what a run did with every image: made once, and kept in its folder with what they belong to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidestep.cost.latency_book import LatencyBook, read_book
from sidestep.data.load import open_split
from sidestep.data.shared_images import content_once
from sidestep.data.split import Split
from sidestep.errors import DataError, OutputError, RecipeError
from sidestep.evaluation.calibration import fit_temperatures
from sidestep.evaluation.exit_curve import ExitSurvey, survey_exits
from sidestep.evaluation.per_image import LEFT, OPTIONS, PerImage
from sidestep.evaluation.report import Report, Seen, evaluate_network, report_of
from sidestep.evaluation.thresholds import Family, thresholds_for_budget
from sidestep.execution.execution import Execution, gathered, masked
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
    weights_digest,
)
from sidestep.routing.exit_rule import scores
from sidestep.runs.at_budget import batches_of, surveys
from sidestep.runs.latency import LATENCY
from sidestep.runs.run_folder import ASKED, BIASES, OpenedRun
from sidestep.types import Batch, CostModel, RoutedOutput

IMAGES = "images.safetensors"
_VERSION = 4
# Budgets of the slider, as fractions of the full network: every hundredth that can be met.
_STEPS = 100
_log = logging.getLogger(__name__)


def image_table(opened: OpenedRun, source: str | None = None) -> ImageTable:
    """Return what a run does with every image of its test split, by arg-max decisions.

    The run folder keeps it, by `report_and_keep` or from here; it is made anew once the weights, where images
    leave, what routers are asked for, the images or the latency book are others. Of images that are gone
    nobody can say that they are others. Where it cannot be kept it is still returned, with an
    `UnkeptWarning`.

    Args:
        opened: the run.
        source: where the data lies now, if not where the recipe says.

    Raises:
        SidestepError: where the data cannot be read or are others.
    """
    path, belongs = opened.folder / IMAGES, _belongs(opened, source)
    known, content, rule = read_table(path, belongs), _content(opened, source), opened.exit_rule
    if known is None and rule is not None:
        # Trainings keep what is said before a rule is solved.
        whole = read_table(path, belongs | {"rule": None})
        known = None if whole is None else whole.leaving_by(rule)
    if known is not None and content in (None, known.content):
        _log.info("taking what was said of every image from %s", path)
        return known
    book = _book_of(opened)
    # Blocks that an image skips change nothing of what is said of it.
    tested = _tested(opened, batches_of(opened, "test", source)(), book, gathered)
    solved_on = surveys(opened, "val", source)[None] if _solves(opened, tested) else None
    table = _made(opened, tested, solved_on, book, content)
    with kept():
        save_table(path, table, belongs)
        _log.info("wrote %s", path)
    return table


def report_and_keep(
    opened: OpenedRun,
    test: Iterable[Batch],
    *,
    split: Split | None = None,
    val: Callable[[], Iterable[Batch]] | None = None,
) -> Report:
    """Return the report on a run's test images, and keep in its folder what was said of every one.

    It is the report of masked execution and arg-max decisions. A later `image_table` finds the table, and
    runs the network no more. Where the table cannot be kept there is a report all the same.

    Args:
        opened: the run, on the CPU: other devices round otherwise than what reports are compared with.
        test: its test images.
        split: those, not decoded, where they are at hand.
        val: returns the images held out of training, on which budgets of early exits are solved.
    """
    book = _book_of(opened)
    tested = _tested(opened, test, book)
    belongs, path = _belongs(opened, None), opened.folder / IMAGES
    if read_table(path, belongs) is None:
        solved_on = None
        if val is not None and _solves(opened, tested):
            solved_on = survey_exits(opened.network, val(), opened.cost)
        content = _content(opened, None) if split is None else content_once(split, opened.recipe.data)
        with suppress(OutputError):  # nobody has asked for it
            save_table(path, _made(opened, tested, solved_on, book, content), belongs)
    return tested.report


def _solves(opened: OpenedRun, tested: _Tested) -> bool:
    """Return whether there are exits, and held-out images on which budgets of them can be solved."""
    return tested.survey is not None and opened.recipe.data.val_fraction > 0


def _belongs(opened: OpenedRun, source: str | None) -> dict[str, Any]:
    """Return by what a kept table is known to be that of a run as it is now, its images aside."""
    rule, book = opened.exit_rule, _book_path(opened)
    return {
        "version": _VERSION,
        "weights": weights_digest(opened.path),
        "settings": {key: opened.values.get(key) for key in ("recipe", "class_names", ASKED, BIASES)},
        "rule": None if rule is None else asdict(rule),
        "source": opened.data_from(source).source,
        "book": None if book is None else digest(book),
    }


def _content(opened: OpenedRun, source: str | None) -> str | None:
    """Return what the images of a run's test split are known by, or None where they cannot be looked at."""
    config = opened.data_from(source)
    try:
        split = open_split(config, "test")
    except DataError:
        return None
    return None if split is None else content_once(split, config)


def _book_of(opened: OpenedRun) -> LatencyBook | None:
    path = _book_path(opened)
    return None if path is None else read_book(path)


def _book_path(opened: OpenedRun) -> Path | None:
    """Return the latency book of reports: float32 in the engine, image by image, or the first."""
    books = (opened.folder / LATENCY).glob("*.json")
    found = sorted(books, key=lambda path: (path.stem != "engine-float32-1", path))
    return found[0] if found else None


def _made(
    opened: OpenedRun,
    tested: _Tested,
    solved_on: ExitSurvey | None,
    book: LatencyBook | None,
    content: str | None,
) -> ImageTable:
    cost = opened.cost
    none = np.zeros(0)
    prices = book.prices if book is not None else None
    return ImageTable(
        **_rows(tested.rows),
        **_of_exits(tested.survey, solved_on, cost.full),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tested:
    """What a network does with the test images: row by row, by all exits where one pass says it, in sum."""

    rows: PerImage
    survey: ExitSurvey | None
    report: Report


def _tested(
    opened: OpenedRun, batches: Iterable[Batch], book: LatencyBook | None, execution: Execution = masked
) -> _Tested:
    """Return what a run's network does with images.

    Args:
        opened: the run.
        batches: of images.
        book: latency book of milliseconds, or None.
        execution: how units are run where no early exits want all of them.
    """
    rows, rule, network, cost = PerImage(opened.cost, book), opened.exit_rule, opened.network, opened.cost
    classes = len(opened.class_names)
    # Exits whose routers are given the budget as well have other scores at every budget.
    if not network.lets_leave or opened.given is not None:
        execution = masked if network.lets_leave else execution
        report = evaluate_network(
            network, batches, cost, num_classes=classes, execution=execution, rule=rule, per_image=rows
        )
        return _Tested(rows=rows, survey=None, report=report)
    seen = Seen()

    def note(output: RoutedOutput, batch: Batch) -> None:
        assert output.exit_logits is not None  # of a survey
        said = answers_by(rule, output.exit_logits, output.decisions, network)
        rows.add(said, batch)
        seen.add(said, batch.labels, cost)

    survey = survey_exits(network, batches, cost, note=note)
    report = report_of(seen, cost, num_classes=classes, execution=masked.name, decisions="argmax")
    return _Tested(rows=rows, survey=survey, report=report)


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


def _of_exits(tested: ExitSurvey | None, solved_on: ExitSurvey | None, full: float) -> dict[str, Array]:
    """Return what all exits say, and the thresholds of budgets as `evaluate --budget` solves them."""
    none = np.zeros((0, 0))
    if tested is None:
        names = ("exit_scores", "exit_predictions", "exit_macs", "thresholds")
        return dict.fromkeys(names, none) | {"budgets": np.zeros(0), "temperatures": np.zeros(0)}
    logits = tested.exit_logits
    temperatures = [1.0] * len(logits)
    if solved_on is not None:
        temperatures = fit_temperatures(solved_on.exit_logits, solved_on.labels)
    budgets, thresholds = _solved(solved_on, temperatures, full)
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
