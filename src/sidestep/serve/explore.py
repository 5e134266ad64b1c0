"""The page of a report that a server has: its reader gives networks images and moves their budgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response

from sidestep.data.data_config import DataConfig
from sidestep.errors import DataError
from sidestep.plan.levels import Level
from sidestep.reporting.exit_figures import at_budgets
from sidestep.reporting.explorer import explorer_data, picture_data
from sidestep.reporting.image_table import CRITERION, ImageTable
from sidestep.reporting.page_file import LIVE_POLICY, LiveModel
from sidestep.reporting.sprite import Sprite, make_sprite
from sidestep.routing.exit_rule import ExitRule
from sidestep.runs.export import exportable, served
from sidestep.runs.make_report import Gathered, check_images, gather, page_of
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.shown_pictures import open_pictures
from sidestep.serve.app import create_app
from sidestep.serve.refusal import RefusedError
from sidestep.serve.served_model import ServedModel, is_run, named_source, open_models
from sidestep.serve.server import serve_app
from sidestep.serve.settings import ServeSettings
from sidestep.targets import Exportable

_log = logging.getLogger(__name__)
# Who looks at a page waits; a budget that gave way to the load would show him another one than he chose.
PATIENT_MS = 60_000.0


def explore(
    sources: Sequence[Path | str], settings: ServeSettings, *, images: int = 500, source: str | None = None
) -> None:
    """Serve the page of a report with what its networks answer, until the process is told to stop.

    Args:
        sources: run folders, packages, plan files and folders of segments; NAME=PATH gives one another name.
        settings: of the server, with one worker.
        images: most images of the test split that can be looked at.
        source: where the data lie now, if not where recipes say; plans, which do not say, have no images
            without it.

    Raises:
        SidestepError: for what cannot be served or shown, or a port that is taken.
    """
    check_images(images)
    serve_app(partial(explore_app, sources, settings, images=images, source=source), settings)


def explore_app(
    sources: Sequence[Path | str], settings: ServeSettings, *, images: int, source: str | None
) -> FastAPI:
    """Return the application of `explore`."""
    paths = [path for _, path in map(named_source, sources)]
    runs = [path for path in paths if is_run(path)]
    for run in runs:
        # Before minutes go into what another one does with images.
        open_run(run, settings.checkpoint)
    found = Gathered(shown=[], alike=[], sprite=None, opened={}, notes=[])
    if runs:
        found = gather(runs, images=images, checkpoint=settings.checkpoint, source=source, originals=True)
    for note in found.notes:
        _log.warning("not shown: %s", note)
    tables = {
        found.opened[run.name].folder: run.table
        for run in found.shown
        if run.table is not None and run.name in found.opened
    }
    models = open_models(sources, settings, partial(_with_budgets, tables))
    sprite = found.sprite
    explorer = explorer_data(found.alike, sprite)
    if not runs and source is not None:
        sprite, explorer = _of_plan(models[0], source, images)
    names = ", ".join(model.name for model in models)
    text = page_of(found, names, live=list(map(_live, models)), explorer=explorer)
    app = create_app(models, settings, (text, f"{LIVE_POLICY}; frame-ancestors 'none'"))
    _add_images(app, sprite)
    return app


def _with_budgets(tables: dict[Path, ImageTable], opened: OpenedRun) -> Exportable:
    """Return what a server gets of a run: with early exits, the budgets of the report's slider.

    Those are what `evaluate --budget` solves; of a run whose images could not be read it has its curve's.
    """
    table = tables.get(opened.folder)
    points = [] if table is None else at_budgets(table)
    if table is None or not points:
        return served(opened)
    rule = ExitRule(
        thresholds=points[-1].thresholds, criterion=CRITERION, temperatures=table.temperatures.tolist()
    )
    levels = [
        Level(
            # What was asked for, so that a budget has the thresholds that were solved for it.
            macs=point.fraction * table.full_macs,
            accuracy=point.accuracy,
            exit_rates=point.exit_rates,
            thresholds=point.thresholds,
        )
        for point in points
    ]
    return replace(exportable(opened, rule), levels=levels)


def _of_plan(model: ServedModel, source: str, images: int) -> tuple[Sprite, dict[str, object]]:
    """Return pictures of test images for a plan, which does not say where such lie, and their data."""
    pictures = model.pictures
    config = DataConfig(source=source, image_size=pictures.size, channels=pictures.channels)
    found = open_pictures(config, pictures.preparation)
    if tuple(found.framing.size) != tuple(pictures.size):
        raise DataError(
            f"images of source {source!r} must be {list(pictures.size)} as those of the plan, got "
            f"{list(found.framing.size)}; name other data"
        )
    count = len(found.labels)
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:images]).tolist()
    _log.info("making small pictures of %d images", len(chosen))
    sprite = make_sprite(found.pixels(chosen), chosen, originals=True)
    labels = found.labels[chosen].tolist()
    return sprite, {"runs": [], "images": picture_data(sprite, labels, found.split.class_names)}


def _live(model: ServedModel) -> LiveModel:
    runner, rungs = model.runners[0], model.ladder.rungs
    threads = f"{runner.num_threads} thread{'s' if runner.num_threads > 1 else ''}"
    return LiveModel(
        name=model.name,
        size=model.pictures.size,
        channels=model.pictures.channels,
        class_names=model.class_names,
        budgets=tuple(rung.budget for rung in rungs),
        accuracies=tuple(rung.accuracy for rung in rungs),
        full_macs=float(model.ladder.full_macs),
        exits=runner.num_exits + 1,
        about=f"{runner.name}, {runner.precision}, {threads}",
    )


def _add_images(app: FastAPI, sprite: Sprite | None) -> None:
    """Add the route that gives the pixels of test images as networks see them."""
    places = {} if sprite is None else {image: place for place, image in enumerate(sprite.ids)}

    @app.get("/explore/images/{number}", tags=["explorer"], response_class=Response)
    async def pixels(number: int) -> Response:
        """Return (H, W, C) bytes of a test image; the header X-Image-Shape has the three numbers."""
        if sprite is None or number not in places:
            raise RefusedError(404, f"image {number} must be one of the {len(places)} that the page shows")
        original = sprite.originals[places[number]]
        shape = ", ".join(map(str, original.shape))
        return Response(
            original.tobytes(),
            media_type="application/octet-stream",
            headers={"X-Image-Shape": f"[{shape}]"},
        )
