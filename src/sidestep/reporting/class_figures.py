"""Figures of which classes are taken for which, at every budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np

from sidestep.reporting.image_table import Array, ImageTable
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.style import WIDTH, data, styled

# Classes of a map that can still be read, and of a run with more those that are taken for others most.
_MOST_CLASSES, _MOST_BUDGETS = 20, 5


def confusion(run: ShownRun) -> list[Figure]:
    """Return how often images of a class get which answer, of a few budgets where exits have them."""
    table = run.table
    if table is None or not len(table.labels):
        return []
    count = len(table.class_names)
    maps = {said: _counts(table.labels, answers, count) for said, answers in _answers(table)}
    shown = _shown(sum(maps.values()))
    rows = [
        {"budget": said, "class": table.class_names[label], "answer": table.class_names[answer],
         "share": float(counts[label, answer] / max(1, counts[label].sum())),
         "images": int(counts[label, answer])}
        for said, counts in maps.items() for label in shown for answer in shown if counts[label, answer]
    ]  # fmt: skip
    reading = _reading(run.name, table, maps)
    chosen = alt.param(
        name="budget",
        value=next(iter(maps)),
        bind=alt.binding_select(options=list(maps), name="Budget ") if len(maps) > 1 else alt.Undefined,
    )
    order = [table.class_names[label] for label in shown]
    base = alt.Chart(data(rows)).transform_filter("datum.budget == budget").encode(
        x=alt.X("answer:N", sort=order, axis=alt.Axis(labelAngle=-50)),
        y=alt.Y("class:N", sort=order),
    )  # fmt: skip
    scale = alt.Scale(type="sqrt", scheme="blues", domain=[0, 1])
    cells = base.mark_rect().encode(
        color=alt.Color("share:Q", scale=scale, legend=alt.Legend(format="%", title="share of class")),
        tooltip=["class:N", "answer:N", "images:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    texts = base.mark_text(fontSize=9).encode(
        text="images:Q",
        color=alt.when("datum.share > 0.4").then(alt.value("#ffffff")).otherwise(alt.value("#333333")),
    )
    chart = alt.layer(cells, texts).add_params(chosen)
    side = min(WIDTH - 120, max(160, 30 * len(shown)))
    return [
        Figure(
            key=f"confusion-{run.name}",
            section="Which classes are taken for which",
            title=f"Confusion between classes, {run.name}",
            reading=reading,
            columns=["budget", "class", "answer", "share", "images"],
            rows=[list(row.values()) for row in rows],
            chart=styled(chart.properties(width=side, height=side), reading),
        )
    ]


def _answers(table: ImageTable) -> Iterator[tuple[str, Array]]:
    """Yield answers by what they are called: those of a few budgets, or the only ones."""
    if not len(table.budgets):
        yield "as evaluated", table.predictions
        return
    for place in np.unique(np.linspace(0, len(table.budgets) - 1, _MOST_BUDGETS).astype(int)):
        exits = table.leaving(table.thresholds[place])
        answers = table.exit_predictions[exits, np.arange(len(exits))]
        yield f"{table.budgets[place]:.0%} of the full network", answers


def _counts(labels: Array, answers: Array, count: int) -> Array:
    counts = np.bincount(labels * count + answers, minlength=count * count)
    return np.asarray(counts.reshape(count, count))


def _shown(counts: Any) -> list[int]:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_MOST_CLASSES]
    return sorted(order.tolist())


def _reading(name: str, table: ImageTable, maps: dict[str, Array]) -> str:
    def worst(counts: Array) -> str:
        wrong = counts - np.diag(np.diag(counts))
        label, answer = divmod(int(wrong.argmax()), len(counts))
        if not wrong.any():
            return "nothing is taken for anything else"
        names = table.class_names
        return f"{names[label]} is most often taken for {names[answer]} ({wrong[label, answer]} images)"

    said = list(maps)
    text = f"In {name} {worst(maps[said[-1]])}"
    if len(said) > 1:
        text += f" at {said[-1]}, and at {said[0]} {worst(maps[said[0]])}"
    return f"{text}."
