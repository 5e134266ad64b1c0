"""The page of a frontier: what is on it, what is beaten and by what, and how to make any of its cascades."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from sidestep.evaluation.environment import describe_environment, in_words
from sidestep.evaluation.frontier import FrontierPoint, dominating, front
from sidestep.files import write_file
from sidestep.results.figure_style import PALETTE, in_style
from sidestep.results.figures import save_figure
from sidestep.results.markdown import check_page, table
from sidestep.types import Unit

_MOST_ROWS = 24
# Of accuracy below the best, that a figure reaches down.
_SHOWN = 0.12


def save_frontier(
    out: Path,
    points: Sequence[FrontierPoint],
    *,
    texts: Mapping[str, str],
    num_images: int,
    failed: Mapping[str, str],
    data: Mapping[str, Any],
    timed: str | None = None,
    precision: str = "float32",
) -> list[Path]:
    """Write the page, its figure (`.png`) and all points (`.json`), and return what was written.

    Args:
        out: the page, a `.md` file.
        points: candidates alone and cascades of them.
        texts: what stands for every candidate on the command line, by name.
        num_images: that they were reported on.
        failed: candidates that could not be run, with the reason.
        data: keys of a recipe's `data:`, which say where the images are from.
        timed: what milliseconds are of, such as "engine, 1 images per call"; None where nothing was timed.
        precision: in which candidates said what they say.

    Raises:
        RecipeError: for a page that is no `.md` file.
        OutputError: when a file cannot be written.
    """
    check_page(out)
    figure, numbers = out.with_suffix(".png"), out.with_suffix(".json")
    environment = describe_environment()
    save_figure(figure, frontier_figure(points))
    write_file(numbers, json.dumps([asdict(point) for point in points]) + "\n", what="points")
    page = frontier_page(
        points,
        texts=texts,
        num_images=num_images,
        failed=failed,
        data=data,
        timed=timed,
        precision=precision,
    )
    told = f"On {in_words(environment['hardware'])}, commit {environment['commit']}."
    write_file(out, f"{page}\n{told}\n\n![Accuracy over cost]({figure.name})\n", what="page")
    return [out, figure, numbers]


def frontier_page(
    points: Sequence[FrontierPoint],
    *,
    texts: Mapping[str, str],
    num_images: int,
    failed: Mapping[str, str],
    data: Mapping[str, Any],
    timed: str | None = None,
    precision: str = "float32",
) -> str:
    """Return the page in markdown; arguments as those of `save_frontier`."""
    on_front = front(points)
    fastest = front(points, "ms")
    lines = [
        "# Frontier",
        "",
        f"{num_images:,} images of the test split of {data['source']}. Thresholds were solved on every "
        "second image and reported on the others, both ways; ± is the standard error of an accuracy.",
        *([] if precision == "float32" else ["", f"Candidates ran in {precision}, in the native engine."]),
        "",
        "## The cheapest for its accuracy",
        "",
        *table(
            ["network", "accuracy %", "M MACs", "share that reaches each", "made by"],
            [_row(point, texts, data) for point in _thinned(on_front)],
        ),
    ]
    if fastest:
        heads = ["network", "accuracy %", "ms", "share that reaches each", "made by"]
        rows = [_row(point, texts, data, "ms") for point in _thinned(fastest)]
        told = f"Milliseconds per image in {timed}, by latency books of all candidates."
        lines += ["", "## The fastest for its accuracy", "", told, "", *table(heads, rows)]
    heads = ["candidate", "accuracy %", "M MACs", *(["ms"] if fastest else []), "beaten by"]
    lines += ["", "## Candidates", "", *table(heads, _candidates(points, on_front, fastest))]
    if failed:
        lines += ["", "## Not run", "", *(f"- {text}: {why}" for text, why in failed.items())]
    return "\n".join(lines) + "\n"


def frontier_figure(points: Sequence[FrontierPoint]) -> Figure:
    """Return a figure of all points over their cost, with the front as a line; one part for every unit."""
    units: list[Unit] = ["MACs", "ms"] if any(point.ms is not None for point in points) else ["MACs"]
    figure = Figure(figsize=(9, 6 * len(units)), layout="constrained")
    parts = figure.subplots(len(units), 1, squeeze=False)
    for axes, unit in zip(parts[:, 0], units, strict=True):
        _draw(axes, [point for point in points if point.cost(unit) < math.inf], unit)
    return figure


def _draw(axes: Axes, points: Sequence[FrontierPoint], unit: Unit) -> None:
    label = {"MACs": "M MACs per image", "ms": "ms per image"}[unit]
    in_style(axes, xlabel=label, ylabel="top-1 accuracy, %", xscale="log")
    best = max(point.accuracy for point in points)
    # What is far below the best has no place beside it.
    shown = [point for point in points if point.accuracy > best - _SHOWN]
    styles: dict[str, dict[str, Any]] = {
        "cascade": {"s": 4, "color": "#bbbbbb", "label": "cascades"},
        "exits": {"s": 10, "color": PALETTE[4], "marker": "^", "label": "early exits"},
    }
    for kind, style in styles.items():
        if of_kind := [point for point in shown if point.kind == kind]:
            axes.scatter(*_places(of_kind, unit), **style)
    axes.plot(*_places(front(shown, unit), unit), color=PALETTE[0], label="front")
    named: dict[tuple[float, float], list[str]] = {}
    for point in shown:
        if point.kind == "static":
            [cost], [accuracy] = _places([point], unit)
            axes.errorbar(cost, accuracy, yerr=100 * point.error, color="black", fmt="o", ms=5)
            near = (at for at in named if abs(at[0] / cost - 1) < 0.05 and abs(at[1] - accuracy) < 0.2)
            named.setdefault(next(near, (cost, accuracy)), []).append(point.members[0].replace("$", r"\$"))
    for at, names in named.items():
        text = ", ".join(names)
        axes.annotate(text, at, textcoords="offset points", xytext=(6, -10), fontsize=8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    least = min(point.accuracy for point in shown)
    axes.set_ylim(bottom=max(0.0, 100 * least - 1), top=min(100.0, 100 * best + 1))
    axes.legend(loc="lower right")


def _places(points: Sequence[FrontierPoint], unit: Unit) -> tuple[list[float], list[float]]:
    """Return M MACs or milliseconds, and accuracies in percent."""
    scale = 1e-6 if unit == "MACs" else 1.0
    return [scale * point.cost(unit) for point in points], [100 * point.accuracy for point in points]


def command_of(
    point: FrontierPoint, texts: Mapping[str, str], data: Mapping[str, Any], unit: Unit = "MACs"
) -> str:
    """Return the command that makes a cascade of the frontier; the text of a candidate for itself."""
    members = shlex.join(texts[name] for name in point.members)
    if point.kind != "cascade":
        return members
    options = shlex.join(part for key, value in data.items() for part in (f"--data.{key}", _typed(value)))
    budget = f"--budget-gflops {2e-9 * point.macs:.5f}" if unit == "MACs" else f"--ms {point.cost(unit):.4f}"
    return f"sidestep cascade {members} {options} {budget} --no-temperatures --calibration halves"


def _typed(value: Any) -> str:
    """Return a value as it is typed on the command line: a text as it is, anything else as YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _thinned(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """Return as many points as a table can have, evenly spread, ends included."""
    if len(points) <= _MOST_ROWS:
        return list(points)
    places = {round(row * (len(points) - 1) / (_MOST_ROWS - 1)) for row in range(_MOST_ROWS)}
    return [points[place] for place in sorted(places)]


def _row(
    point: FrontierPoint, texts: Mapping[str, str], data: Mapping[str, Any], unit: Unit = "MACs"
) -> list[str]:
    return [
        ", then ".join(point.members) + (", exits" if point.kind == "exits" else ""),
        f"{100 * point.accuracy:.2f} ± {100 * point.error:.2f}",
        f"{1e-6 * point.macs:.1f}" if unit == "MACs" else f"{point.cost(unit):.4f}",
        ", ".join(f"{100 * share:.1f} %" for share in point.shares),
        f"`{command_of(point, texts, data, unit)}`",
    ]


def _candidates(
    points: Sequence[FrontierPoint], on_front: Sequence[FrontierPoint], fastest: Sequence[FrontierPoint]
) -> list[list[str]]:
    rows = []
    for point in points:
        if point.kind != "static":
            continue
        better = dominating(point, on_front)
        told = "nothing"
        if better is not None:
            told = (
                f"{', then '.join(better.members)}: {100 * better.accuracy:.2f} at {1e-6 * better.macs:.1f} M"
            )
        rows.append(
            [
                point.members[0],
                f"{100 * point.accuracy:.2f} ± {100 * point.error:.2f}",
                f"{1e-6 * point.macs:.1f}",
                *([] if not fastest else ["" if point.ms is None else f"{point.ms:.4f}"]),
                told,
            ]
        )
    return rows
