"""Figures of accuracy over cost, and of what every unit costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sidestep.errors import RecipeError
from sidestep.reporting.exit_figures import at_budgets
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.style import GREY, WIDTH, by_run, data, styled
from sidestep.results.published import PublishedPoint, published_points
from sidestep.results.run_groups import RunGroup, lines_of, run_groups
from sidestep.results.run_result import RunResult

_MACS, _MS = "M MACs per image, routers in", "ms per image"
_SECTION = "Accuracy over cost"
_MOST_BUDGETS = 20
# A cheapest below this share of the dearest lets an axis begin at 0; points of accuracy with room for names.
_LOW, _SPREAD = 0.3, 15.0
_KINDS = {"executed": "#0072B2", "router": "#D55E00", "exit": "#009E73", "always": "#7F7F7F"}


def accuracy_cost(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return accuracy over cost of all finished runs, with static networks and published rows.

    Runs that differ in their seed alone are one point with its deviation.
    """
    results = [run.result for run in runs if run.result is not None]
    groups = run_groups(results)
    joined = [(name, line) for name, line in lines_of(groups) if len(line) > 1]
    rows = [row for group in groups for row in _points(group)] + _of_tables(runs) + _milliseconds(runs)
    if not rows:
        return []
    theirs = [_published(point) for point in _known(results)]
    reading = _reading(rows, theirs)
    names = list(dict.fromkeys(row["run"] for row in rows))
    columns = ["run", "kind", "axis", "cost", "accuracy", "deviation"]
    return [
        Figure(
            key="accuracy_cost",
            section=_SECTION,
            title="Accuracy over cost",
            reading=reading,
            columns=columns,
            rows=[[row[name] for name in columns] for row in [*rows, *theirs]],
            chart=styled(_chart(rows, theirs, by_run(names, [run.name for run in runs]), joined), reading),
            paper="figures 5 and 6",
        )
    ]


def _row(
    run: str, kind: str, axis: str, cost: float, accuracy: float, deviation: float = 0.0
) -> dict[str, Any]:
    return {
        "run": run,
        "kind": kind,
        "axis": axis,
        "cost": cost,
        "accuracy": accuracy,
        "deviation": deviation,
        "low": accuracy - deviation,
        "high": accuracy + deviation,
    }


def _points(group: RunGroup) -> list[dict[str, Any]]:
    """Return the points of a group in MACs: its report, and the curve of its first run."""
    result = group.results[0]
    accuracy, deviation = group.percent
    kind = "static network" if result.savings == "nothing" else "run"
    rows = [_row(group.name, kind, _MACS, group.gflops[0] * 500, accuracy, deviation)]
    if result.exits is not None:
        for kind in ("anytime", "budgeted"):
            rows += [
                _row(group.name, kind, _MACS, gflops * 500, percent)
                for gflops, percent in result.exits.accuracy_cost(kind)
            ]
    if result.budgets is not None:
        points = result.budgets.points
        rows += [_row(group.name, "budgeted", _MACS, 1e-6 * p.macs, 100 * p.accuracy) for p in points]
    return rows


def _of_tables(runs: Sequence[ShownRun]) -> list[dict[str, Any]]:
    """Return what tables of images say beyond results: unfinished runs, and budgets without a kept curve."""
    rows = []
    for run in runs:
        table = run.table
        if table is None:
            continue
        if run.result is None:
            accuracy = 100 * float(table.correct.mean())
            rows.append(_row(run.name, "not finished", _MACS, 1e-6 * float(table.macs.mean()), accuracy))
        if run.result is None or run.result.exits is None:
            points = at_budgets(table)
            some = points[:: max(1, len(points) // _MOST_BUDGETS)]
            rows += [_row(run.name, "budgeted", _MACS, 1e-6 * p.macs, 100 * p.accuracy) for p in some]
    return rows


def _milliseconds(runs: Sequence[ShownRun]) -> list[dict[str, Any]]:
    """Return the points of runs in milliseconds: by their latency books, and as `bench` measured them."""
    rows = []
    for run in runs:
        table, result = run.table, run.result
        if table is not None and len(table.ms):
            accuracy = 100 * float(table.correct.mean())
            rows.append(_row(run.name, f"book {table.book}", _MS, float(table.ms.mean()), accuracy))
        for timing in [] if result is None else result.timings:
            # Of the static origin it is not known here how often it is right.
            if result is not None and "static" not in timing.runtime:
                kind = f"{timing.runtime}, {timing.precision}, {timing.batch_size} at once"
                rows.append(_row(run.name, kind, _MS, timing.ms_per_image, result.percent))
    return rows


def _known(results: Sequence[RunResult]) -> list[PublishedPoint]:
    """Return what papers say of the data set of the runs, if it is one that they speak of."""
    sources = " ".join(str(result.recipe["data"].get("source", "")) for result in results).lower()
    for name in ("cifar100", "cifar10", "imagenet"):
        if name in sources and "imagenette" not in sources:
            try:
                return [point for point in published_points(name) if point.place is None]
            except RecipeError:
                return []
    return []


def _published(point: PublishedPoint) -> dict[str, Any]:
    name = f"{point.system} ({point.backbone})"
    kind = "published, not checked" if point.read == "memory" else "published"
    return _row(name, kind, _MACS, point.gflops * 500, point.accuracy)


def _chart(
    rows: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    own_looks: dict[str, Any],
    joined: Sequence[tuple[str, Sequence[RunGroup]]],
) -> Any:
    axes = [axis for axis in (_MACS, _MS) if any(row["axis"] == axis for row in rows)]
    chosen = alt.param(
        name="axis",
        value=axes[0],
        bind=alt.binding_select(options=axes, name="Cost in ") if len(axes) > 1 else alt.Undefined,
    )
    hovered = alt.selection_point(fields=["run"], bind="legend", name="shown")
    costs = [row["cost"] for row in [*rows, *theirs] if row["axis"] == axes[0]]
    from_zero = min(costs) < _LOW * max(costs)
    x_scale = alt.Scale(zero=True) if from_zero else alt.Scale(zero=False, padding=12)
    x = alt.X("cost:Q", title=None, scale=x_scale)
    y = alt.Y("accuracy:Q", title="top-1 accuracy, %", scale=alt.Scale(zero=False, padding=12))
    tips = ["run:N", "kind:N", alt.Tooltip("cost:Q", format=".4g"), alt.Tooltip("accuracy:Q", format=".2f")]
    faded = alt.when(hovered).then(alt.value(1.0)).otherwise(alt.value(0.15))
    own = alt.Chart(data(rows)).transform_filter("datum.axis == axis").encode(x=x, y=y)
    marks = own.mark_point(size=90, filled=True).encode(**own_looks, opacity=faded, tooltip=tips)
    bars = own.transform_filter("datum.deviation > 0").mark_rule(strokeWidth=1.5, aria=False)
    bars = bars.encode(y=y, y2="high:Q").encode(y=alt.Y("low:Q"), color=own_looks["color"])
    curves = own.transform_filter("datum.kind == 'budgeted' || datum.kind == 'anytime'").mark_line(
        strokeWidth=1.5, aria=False
    )
    curves = curves.encode(color=own_looks["color"], strokeDash=alt.StrokeDash("kind:N", legend=None))
    layers = [marks.add_params(hovered)]
    # Vega warns of layers in which nothing lies.
    if any(row["deviation"] > 0 for row in rows):
        layers.insert(0, bars)
    if any(row["kind"] in ("budgeted", "anytime") for row in rows):
        layers.insert(0, curves.encode(opacity=faded))
    if joined:
        layers.insert(0, _joining(x, y, joined))
    if theirs:
        papers = alt.Chart(data(theirs)).transform_filter("datum.axis == axis").encode(x=x, y=y)
        layers.insert(0, papers.mark_square(size=45, filled=False, color=GREY).encode(tooltip=tips))
        seen = [row["accuracy"] for row in [*rows, *theirs]]
        # Beside one that is far below the names of the others would lie on each other.
        if max(seen) - min(seen) < _SPREAD:
            layers.insert(1, _named(x, y, theirs))
    chart = alt.layer(*layers).properties(width=WIDTH, height=360)
    title = alt.TitleParams(text=alt.expr("axis"), orient="bottom", fontWeight="normal", fontSize=12)
    return chart.properties(title=title).add_params(chosen)


def _joining(x: Any, y: Any, joined: Sequence[tuple[str, Sequence[RunGroup]]]) -> Any:
    """Return thin lines through runs of one recipe that differ in one setting."""
    places = [
        {"line": name, "axis": _MACS, "cost": group.gflops[0] * 500, "accuracy": group.percent[0]}
        for name, line in joined
        for group in line
    ]
    lines = alt.Chart(data(places)).transform_filter("datum.axis == axis").encode(x=x, y=y)
    return lines.mark_line(strokeWidth=1, color=GREY, aria=False).encode(detail="line:N")


def _named(x: Any, y: Any, theirs: list[dict[str, Any]]) -> Any:
    """Return the names of published networks that no cheaper one surpasses; all have theirs in tooltips."""
    best = [
        row
        for row in theirs
        if all(other["accuracy"] < row["accuracy"] for other in theirs if other["cost"] < row["cost"])
    ]
    papers = alt.Chart(data(best)).transform_filter("datum.axis == axis").encode(x=x, y=y, text="run:N")
    return papers.mark_text(align="left", dx=6, dy=4, fontSize=9, color=GREY, aria=False)


def _reading(rows: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    own = [row for row in rows if row["axis"] == _MACS]
    best = max(own, key=lambda row: (row["accuracy"], -row["cost"]))
    cheapest = min(own, key=lambda row: (row["cost"], -row["accuracy"]))
    text = f"{best['run']} is the most accurate: {_said(best)}"
    if cheapest is not best:
        text += f"; {cheapest['run']} is the cheapest: {_said(cheapest)}"
    better = [row for row in theirs if row["accuracy"] > best["accuracy"]]
    if theirs:
        text += (
            f"; {len(better)} of {len(theirs)} published networks are more accurate than the best of these"
        )
    return f"{text}."


def _said(row: dict[str, Any]) -> str:
    spread = f" ± {row['deviation']:.2f}" if row["deviation"] else ""
    return f"{row['accuracy']:.2f}{spread} % at {row['cost']:.4g} M MACs an image"


def cost_book(run: ShownRun) -> list[Figure]:
    """Return what every unit, router and exit of a run costs, in MACs and by its latency book."""
    table = run.table
    if table is None:
        return []
    rows = [
        {"part": "stem and head", "kind": "always", "macs": 1e-6 * table.fixed_macs, "ms": table.fixed_ms}
    ]
    for index, prices in enumerate(table.option_macs):
        ms = float(table.option_ms[index, -1]) if len(table.option_ms) else None
        part = f"unit {index + 1}"
        rows.append({"part": part, "kind": "executed", "macs": 1e-6 * float(prices[-1]), "ms": ms})
        if float(prices[0]) > 0:
            rows.append({"part": part, "kind": "skipped", "macs": 1e-6 * float(prices[0]), "ms": None})
        if float(table.router_macs[index]) > 0:
            asked = 1e-6 * float(table.router_macs[index])
            rows.append({"part": part, "kind": "router", "macs": asked, "ms": None})
    for index, price in enumerate(table.head_macs):
        ms = float(table.head_ms[index]) if len(table.head_ms) else None
        rows.append({"part": f"exit {index + 1}", "kind": "exit", "macs": 1e-6 * float(price), "ms": ms})
    reading = _book_reading(run.name, rows, table.full_macs)
    order = list(dict.fromkeys(str(row["part"]) for row in rows))
    # What skipping costs is in the table: beside what executing costs, and not on top of it.
    bars = alt.Chart(data([row for row in rows if row["kind"] != "skipped"])).mark_bar()
    y = alt.Y("part:N", sort=order, title=None, scale=alt.Scale(domain=order))
    scale = alt.Scale(domain=list(_KINDS), range=list(_KINDS.values()))
    color = alt.Color("kind:N", legend=alt.Legend(title=None, orient="top"), scale=scale)
    tips = ["part:N", "kind:N", "macs:Q", "ms:Q"]
    panels = [bars.encode(x=alt.X("macs:Q", title="M MACs"), y=y, color=color, tooltip=tips)]
    if any(row["ms"] for row in rows):
        timed = bars.encode(x=alt.X("ms:Q", title=f"ms ({table.book})"), y=y, color=color, tooltip=tips)
        panels.append(timed)
    width = WIDTH - 60 if len(panels) == 1 else 220
    panels = [panel.properties(width=width, height=alt.Step(13)) for panel in panels]
    return [
        Figure(
            key=f"cost_book-{run.name}",
            section="What every part costs",
            title=f"Cost book of {run.name}",
            reading=reading,
            columns=["part", "kind", "M MACs", "ms"],
            rows=[list(row.values()) for row in rows],
            chart=styled(alt.hconcat(*panels), reading),
        )
    ]


def _book_reading(name: str, rows: list[dict[str, Any]], full: float) -> str:
    dearest = max(rows, key=lambda row: row["macs"])
    routers = sum(row["macs"] for row in rows if row["kind"] == "router")
    share = 100e6 * routers / full
    asked = f"all routers together cost {share:.2g} % of it" if routers else "there are no routers"
    return (
        f"Of {1e-6 * full:.4g} M MACs of the full network {name} pays most for {dearest['part']} "
        f"({dearest['kind']}, {dearest['macs']:.4g} M); {asked}."
    )
