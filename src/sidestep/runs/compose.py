"""Cascades of trained networks: members in, a run folder out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from sidestep.cost.latency_book import RUNTIMES, LatencyBook
from sidestep.data.image_set import eval_batch_size
from sidestep.data.load import open_split
from sidestep.errors import DataError, RecipeError
from sidestep.evaluation.exit_curve import ExitCalibration, ExitSurvey, calibrate, survey_exits
from sidestep.evaluation.report import Seen, report_of
from sidestep.files import write_file
from sidestep.networks.cascade_network import Combine
from sidestep.progress import through
from sidestep.results.run_result import HALVES, REPORT
from sidestep.runs.at_budget import Calibration, ExitBudget, solve
from sidestep.runs.cascade_model import CascadeSettings
from sidestep.runs.evaluate import evaluate, keep_calibration
from sidestep.runs.latency import book_for, measure_book
from sidestep.runs.members import check_classes, distinct, macs_of, member_of
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import OpenedRun, open_run, whole_or_none
from sidestep.runs.schema import as_plain
from sidestep.runs.sections import DATA
from sidestep.runs.train import train

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """A cascade that was made.

    Attributes:
        folder: its run folder.
        members: names of its members, in the order of their cost.
        calibration: where images leave, or None where no budget was given.
        report: on the test split, as plain values; under `halves` every image by thresholds that the other
            half has solved.
    """

    folder: Path
    members: list[str]
    calibration: ExitCalibration | None
    report: dict[str, Any]


def make_cascade(
    members: Sequence[str],
    out: Path | str,
    *,
    data: dict[str, Any],
    budget: ExitBudget | None = None,
    book: str | None = None,
    calibration: Calibration = "val",
    combine: Combine = "log_probs",
) -> Cascade:
    """Make a run folder of trained networks, in which a dearer one is asked where a cheaper one is unsure.

    Nothing is trained. `evaluate`, `curve`, `calibrate`, `bench`, `export` and `results` take the folder as
    that of any network with early exits.

    Args:
        members: as `member_of` takes them, two or more; they are sorted by their cost.
        out: the run folder.
        data: keys of a recipe's `data:`. Size, crop and normalisation follow from the members; mean and std
            are those of members that bring none.
        budget: what an image may cost on average; without one all images go to the last member.
        book: latency book, for a budget in milliseconds and for the report: a file, or a runtime in which the
            cascade is measured with one image per call ("engine" where the budget needs one).
        calibration: where thresholds are solved: on the validation split ("val"), or on either half of the
            test split for the other one ("halves"), for weights that have seen the validation images. What is
            kept then is solved on both.
        combine: what a member says of an image, see `CascadeNetwork`.

    Raises:
        RecipeError: for members that do not fit together, or a budget that no thresholds meet.
        DataError: for data without the images that are asked for.
    """
    if calibration not in get_args(Calibration):
        raise RecipeError(
            f"calibration must be one of {', '.join(get_args(Calibration))}, got {calibration!r}"
        )
    if book is not None and budget is None:
        raise RecipeError(f"book {book!r} has no effect without a budget; add one, such as --ms 0.5")
    recipe = cascade_recipe(members, data=data, combine=combine, name=Path(out).name)
    with whole_or_none(Path(out)):
        folder = train(recipe, out)
        if budget is None:
            report = json.loads((folder / REPORT).read_bytes())["best"]
            return Cascade(folder=folder, members=_names(recipe), calibration=None, report=report)
        solved, report = _calibrated(folder, budget, book, calibration)
    return Cascade(folder=folder, members=_names(recipe), calibration=solved, report=report)


def _names(recipe: Recipe) -> list[str]:
    return [member.name for member in recipe.model.settings.members]


def _calibrated(
    folder: Path, budget: ExitBudget, book: str | None, calibration: Calibration
) -> tuple[ExitCalibration, dict[str, Any]]:
    """Solve and keep the thresholds of a cascade, and return them with its report."""
    opened = open_run(folder, "best")
    timed = budget.ms is not None or book is not None
    name = _book_name(opened, book) if timed else None
    latency = book_for(opened, name) if timed else None
    if calibration == "val":
        solved = solve(opened, budget, None, latency)
        keep_calibration(opened, solved)
        report = evaluate(folder, book=name).as_dict()
    else:
        solved, report = _by_halves(opened, budget, latency)
        keep_calibration(opened, solved)
    write_file(folder / REPORT, json.dumps({"best": report, "last": report}, indent=1) + "\n", what="report")
    return solved, report


def cascade_recipe(members: Sequence[str], *, data: dict[str, Any], combine: Combine, name: str) -> Recipe:
    """Return the recipe of a cascade, with its members in the order of their cost."""
    errors: list[str] = []
    config = DATA.build(data, "data", errors)
    if errors:
        raise RecipeError("; ".join(errors))
    split = open_split(config, "test")
    if split is None:
        raise DataError(f"source {config.source!r} must have a test split, and has none")
    named = [member_of(text, config, given=data) for text in members]
    for member in named:
        check_classes(member, split.class_names)
    found = distinct([member.settings for member in named])
    order = sorted(found, key=lambda member: macs_of(member, len(split.class_names)))
    if order != found:
        _log.info("members in the order of their cost: %s", ", ".join(member.name for member in order))
    settings = CascadeSettings(members=order, combine=combine)
    given = settings.input
    seen = {
        "image_size": list(given.size),
        "crop_share": given.crop_share,
        "interpolation": given.interpolation,
        "mean": list(given.mean),
        "std": list(given.std),
    }
    values = {
        "name": name,
        "method": {"name": "cascade"},
        "model": {"name": "cascade", **as_plain(settings)},
        "data": {**data, **seen},
        "training": {"phases": []},
    }
    return from_dict(values, "the cascade")


def _book_name(opened: OpenedRun, book: str | None) -> str:
    """Return the latency book of a cascade that has just been made, as `book_for` takes it."""
    if book is None or book in RUNTIMES:
        return measure_book(opened.path.parent, book or "engine").name
    return book


def _by_halves(
    opened: OpenedRun, budget: ExitBudget, latency: LatencyBook | None
) -> tuple[ExitCalibration, dict[str, Any]]:
    """Return the calibration on the whole test split, and the report of either half under the other's."""
    test = data_of(opened, "test", None).test
    if test is None:
        raise DataError("calibration by halves needs a test split, and the data has none")
    batches = list(test.eval_batches(batch_size=eval_batch_size(opened.input_size)))
    shown = through(batches, "running the network", len(batches))
    survey = survey_exits(opened.network, shown, opened.cost, latency)
    goal = budget.goal(opened.cost.full)

    def solved(part: ExitSurvey) -> ExitCalibration:
        return calibrate(part, goal, criterion=budget.criterion, scale=budget.scale)

    rules = [solved(survey.every_second(half)).rule for half in (0, 1)]
    seen = Seen()
    with torch.inference_mode():
        for half, rule in enumerate(reversed(rules)):
            for batch in through(batches, "running the network by halves", len(batches)):
                images, labels = batch.images[half::2], batch.labels[half::2]
                seen.add(opened.network(images, rule=rule), labels, opened.cost)
    report = report_of(
        seen,
        opened.cost,
        num_classes=len(opened.class_names),
        execution="masked",
        decisions="argmax",
        latency=latency,
    )
    return solved(survey), report.as_dict() | {HALVES: True}
