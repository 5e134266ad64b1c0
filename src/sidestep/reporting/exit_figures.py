"""Figures of early exits: where images leave, whether confidence is honest, and what budgets bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from sidestep.reporting.image_table import Array, ImageTable
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.style import GREY, WIDTH, data, styled
from sidestep.results.figure_style import PALETTE

_SECTION = "Exits, confidence and budgets"
_BINS = 15


def exit_histogram(run: ShownRun) -> list[Figure]:
    """Return how many images leave a run's network at every exit, and how often they are right there."""
    table = run.table
    if table is None or not len(table.exits):
        return []
    rows = []
    for exit in range(max(table.num_exits, int(table.exits.max()) + 1)):
        left = table.exits == exit
        accuracy = 100 * float(table.correct[left].mean()) if left.any() else None
        rows.append({"exit": exit + 1, "share": float(left.mean()), "accuracy": accuracy})
    first = rows[0]
    reading = f"{first['share']:.1%} of the images leave {run.name} at its first exit"
    if first["accuracy"] is not None:
        reading += f", where {first['accuracy']:.2f} % of them are right"
    base = alt.Chart(data(rows)).encode(x=alt.X("exit:O", title="exit", axis=alt.Axis(labelAngle=0)))
    y = alt.Y("share:Q", title="share of images; above: right of them", axis=alt.Axis(format="%"))
    tips = ["exit:O", alt.Tooltip("share:Q", format=".2%"), alt.Tooltip("accuracy:Q", format=".2f")]
    bars = base.mark_bar(color=PALETTE[0]).encode(y=y, tooltip=tips)
    texts = base.transform_filter("isValid(datum.accuracy)").transform_calculate(
        said="format(datum.accuracy, '.0f') + ' %'"
    )
    chart = alt.layer(bars, texts.mark_text(dy=-7).encode(y=y, text="said:N"))
    return [
        Figure(
            key=f"exits-{run.name}",
            section=_SECTION,
            title=f"Where images leave {run.name}",
            reading=f"{reading}.",
            columns=["exit", "share", "accuracy"],
            rows=[list(row.values()) for row in rows],
            chart=styled(chart.properties(width=min(WIDTH, 90 * len(rows) + 60), height=200), reading),
        )
    ]


def reliability(run: ShownRun) -> list[Figure]:
    """Return how often answers of a confidence are right, of every exit or of the one answer."""
    table = run.table
    if table is None or not len(table.labels):
        return []
    curves = _curves(table)
    rows, errors = [], {}
    for name, confident, correct in curves:
        bins, errors[name] = calibration_bins(confident, correct)
        rows += [{"answer of": name, **row} for row in bins]
    name, error = list(errors.items())[-1]
    confident, correct = curves[-1][1], curves[-1][2]
    who = name.capitalize() if table.num_exits else "The answer"
    word = "more" if confident.mean() > correct.mean() else "less"
    reading = (
        f"{who} of {run.name} is {word} confident than right: {confident.mean():.1%} against "
        f"{correct.mean():.1%}, with an expected calibration error of {error:.2%}."
    )
    unit, palette = alt.Scale(domain=[0, 1]), alt.Scale(range=list(PALETTE))
    ideal = alt.Chart(data([{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(color=GREY, strokeDash=[4, 4])
    line = alt.Chart(data(rows)).mark_line(point=alt.OverlayMarkDef(size=50)).encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=unit),
        y=alt.Y("accuracy:Q", title="share that is right", scale=unit),
        color=alt.Color("answer of:N", sort=list(errors), scale=palette, legend=alt.Legend(title=None)),
        tooltip=["answer of:N", "confidence:Q", "accuracy:Q", "images:Q"],
    )  # fmt: skip
    chart = alt.layer(ideal.encode(x="x:Q", y="y:Q"), line).properties(width=300, height=300)
    return [
        Figure(
            key=f"reliability-{run.name}",
            section=_SECTION,
            title=f"Reliability of {run.name}",
            reading=reading,
            columns=["answer of", "confidence", "accuracy", "images"],
            rows=[list(row.values()) for row in rows],
            chart=styled(chart, reading),
        )
    ]


def calibration_bins(confident: Array, correct: Array) -> tuple[list[dict[str, Any]], float]:
    """Return confidence, accuracy and number of images of 15 equal bins, and the expected error over them.

    Args:
        confident: (N,) probabilities of answers.
        correct: (N,) booleans.
    """
    places = np.clip(np.ceil(confident * _BINS).astype(int) - 1, 0, _BINS - 1)
    bins, error = [], 0.0
    for place in np.unique(places):
        here = places == place
        mean, right = float(confident[here].mean(dtype=np.float64)), float(correct[here].mean())
        bins.append({"confidence": mean, "accuracy": right, "images": int(here.sum())})
        error += abs(mean - right) * float(here.mean())
    return bins, error


@dataclass(frozen=True, slots=True, kw_only=True)
class AtBudget:
    """What comes out on the test split under a budget that was solved on the validation split."""

    fraction: float
    thresholds: list[float]
    accuracy: float
    macs: float
    exit_rates: list[float]


def at_budgets(table: ImageTable) -> list[AtBudget]:
    """Return what every budget of a table brings, as `evaluate --budget` reports it."""
    found = []
    for fraction, thresholds in zip(table.budgets.tolist(), table.thresholds, strict=True):
        exits = table.leaving(thresholds)
        images = np.arange(len(exits))
        right = table.exit_predictions[exits, images] == table.labels
        found.append(
            AtBudget(
                fraction=fraction,
                thresholds=thresholds.tolist(),
                accuracy=float(right.mean()),
                macs=float(table.exit_macs[exits, images].mean()),
                exit_rates=(np.bincount(exits, minlength=table.num_exits) / len(exits)).tolist(),
            )
        )
    return found


def budgets(run: ShownRun) -> list[Figure]:
    """Return accuracy under every budget of a run with early exits; the page puts a slider below."""
    table = run.table
    points = [] if table is None else at_budgets(table)
    if table is None or not points:
        return []
    reading = _budgets_reading(run.name, points)
    rows = [
        {"budget": p.fraction, "accuracy": 100 * p.accuracy, "cost": p.macs / table.full_macs} for p in points
    ]
    loose = alt.Scale(zero=False)
    chart = alt.Chart(data(rows)).mark_line(point=True, color=PALETTE[0]).encode(
        x=alt.X("cost:Q", title="share of the full network's MACs", axis=alt.Axis(format="%"), scale=loose),
        y=alt.Y("accuracy:Q", title="top-1 accuracy, %", scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("budget:Q", format=".0%"), alt.Tooltip("accuracy:Q", format=".2f"), "cost:Q"],
    )  # fmt: skip
    heads = range(1, table.num_exits)
    return [
        Figure(
            key=f"budgets-{run.name}",
            section=_SECTION,
            title=f"Budgets of {run.name}",
            reading=reading,
            columns=[
                "budget", "accuracy", "GFLOPs", *(f"threshold {head}" for head in heads),
                *(f"share at exit {head}" for head in (*heads, table.num_exits)),
            ],
            rows=[[p.fraction, p.accuracy, 2e-9 * p.macs, *p.thresholds, *p.exit_rates] for p in points],
            chart=styled(chart.properties(width=WIDTH, height=220), reading),
        )
    ]  # fmt: skip


def _budgets_reading(name: str, points: Sequence[AtBudget]) -> str:
    best = max(points, key=lambda point: (point.accuracy, -point.macs))
    enough = next(point for point in points if point.accuracy >= best.accuracy - 0.005)
    return (
        f"{name} is best with a budget of {best.fraction:.0%} ({best.accuracy:.2%} right), and within half a "
        f"point of that from {enough.fraction:.0%} on ({enough.accuracy:.2%})."
    )


def _curves(table: ImageTable) -> list[tuple[str, Array, Array]]:
    if not table.num_exits:
        return [("answer", table.confidences, table.correct)]
    each = zip(table.exit_scores, table.exit_predictions, strict=True)
    return [(f"exit {n}", scores, said == table.labels) for n, (scores, said) in enumerate(each, start=1)]
