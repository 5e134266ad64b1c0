"""The data with which a page shows one image at a time, and moves budgets."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidestep.reporting.exit_figures import at_budgets
from sidestep.reporting.image_table import Array, ImageTable
from sidestep.reporting.path_figures import path_names
from sidestep.reporting.shown import ShownRun
from sidestep.reporting.sprite import Sprite


def explorer_data(runs: Sequence[ShownRun], sprite: Sprite | None) -> dict[str, Any]:
    """Return what every run did with the images that are shown, ready for JSON.

    Args:
        runs: of the same images.
        sprite: pictures of the shown ones, or None where none can be shown.
    """
    tables = [(run.name, run.table) for run in runs if run.table is not None]
    if sprite is None or not tables:
        return {"runs": [], "images": None}
    first, ids = tables[0][1], np.array(sprite.ids)
    return {
        "runs": [_of_run(name, table, ids) for name, table in tables],
        "images": picture_data(sprite, first.labels[ids].tolist(), first.class_names),
    }


def picture_data(sprite: Sprite, labels: Sequence[int], class_names: Sequence[str]) -> dict[str, Any]:
    """Return small pictures with their classes, ready for JSON.

    Args:
        sprite: the pictures.
        labels: classes of them.
        class_names: of these.
    """
    return {
        "ids": sprite.ids,
        "labels": list(labels),
        "classes": list(class_names),
        "width": sprite.size[0],
        "height": sprite.size[1],
        "columns": sprite.columns,
        "sprite": sprite.as_uri(),
    }


def _of_run(name: str, table: ImageTable, ids: Array) -> dict[str, Any]:
    names, paths = path_names(table), table.path_texts()
    return {
        "name": name,
        "full": table.full_macs,
        "unitsBefore": table.units_before.tolist(),
        "paths": [names[image] for image in ids],
        "options": [paths[image] for image in ids],
        "predictions": table.predictions[ids].tolist(),
        "confidences": _rounded(table.confidences[ids]),
        "macs": table.macs[ids].tolist(),
        "ms": _rounded(table.ms[ids]) if len(table.ms) else None,
        "exits": table.exits[ids].tolist() if len(table.exits) else None,
        "routers": _bytes(np.rint(100 * table.routers[ids])) if len(table.routers) else None,
        "exitPredictions": table.exit_predictions[:, ids].tolist() if table.num_exits else None,
        "exitConfidences": [_rounded(row) for row in table.exit_scores[:, ids]] if table.num_exits else None,
    }


def slider_data(run: ShownRun) -> dict[str, Any] | None:
    """Return the scores of all images of a run with early exits, for a slider over its budgets, or None.

    A score is kept as the number of thresholds of its exit that it reaches: no digit of it, and all that
    decides where an image leaves under one of the budgets.
    """
    table = run.table
    if table is None or not len(table.budgets):
        return None
    levels, ranks = [], []
    for scores, thresholds in zip(table.exit_scores[:-1], table.thresholds.T, strict=True):
        known = np.unique(thresholds)
        levels.append(np.searchsorted(known, scores, side="right"))
        ranks.append((np.searchsorted(known, thresholds) + 1).tolist())
    right = table.exit_predictions == table.labels
    alike = bool((np.ptp(table.exit_macs, axis=1) == 0).all())
    macs = np.ascontiguousarray(table.exit_macs[:, :1] if alike else table.exit_macs, dtype="<f8")
    return {
        "name": run.name,
        "images": len(table.labels),
        "exits": table.num_exits,
        "full": table.full_macs,
        "budgets": table.budgets.tolist(),
        "thresholds": table.thresholds.tolist(),
        "ranks": ranks,
        "levels": _bytes(np.stack(levels)),
        "right": _bytes(right),
        "macs": base64.b64encode(macs.tobytes()).decode(),
        "alike": alike,
        "start": _middle(table),
    }


def _middle(table: ImageTable) -> int:
    """Return the place of the cheapest budget within half a point of the best accuracy."""
    points = at_budgets(table)
    best = max(point.accuracy for point in points)
    return next(place for place, point in enumerate(points) if point.accuracy >= best - 0.005)


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 4) for value in values]


def _bytes(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(np.uint8).tobytes()).decode()
