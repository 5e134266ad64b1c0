"""Figures of what is executed: keep rates, paths, and how far paths of images lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import torch

from sidestep.evaluation.path_information import class_bits, image_bits
from sidestep.reporting.image_table import Array, ImageTable
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.style import SEQUENTIAL, WIDTH, by_run, data, styled
from sidestep.results.figure_style import PALETTE

_KEEP, _PATHS = "What is executed", "Paths"
_MOST_PATHS, _PAIRS = 20, 20_000
# Classes that have a bar with a name of a good size; more share the height of these.
_MOST_CLASSES = 30
# Below this many bits about the image an answer cannot depend on more than a rare path.
_COLLAPSED = 0.05


def keep_rates(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return the keep rate of every block, of all runs that have blocks."""
    rows = [
        {"run": run.name, "block": index + 1, "keep rate": float(rate)}
        for run in runs
        if run.table is not None
        for index, rate in enumerate(_rates(run.table))
    ]
    if not rows:
        return []
    reading = " ".join(
        _kept(run.name, run.table) for run in runs if run.table is not None and _has_units(run.table)
    )
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    x = alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickMinStep=1))
    chart = alt.Chart(data(rows)).mark_line(point=alt.OverlayMarkDef(size=60, filled=True))
    y = alt.Y("keep rate:Q", scale=alt.Scale(domain=[0, 1]))
    chart = chart.encode(
        x=x, y=y, **by_run(names, [run.name for run in runs]), tooltip=["run:N", "block:Q", "keep rate:Q"]
    )
    return [
        Figure(
            key="keep_rates",
            section=_KEEP,
            title="Keep rate of every block",
            reading=reading,
            columns=["run", "block", "keep rate"],
            rows=[list(row.values()) for row in rows],
            chart=styled(chart.properties(width=WIDTH, height=220), reading),
            paper="figure 9",
        )
    ]


def keep_map(run: ShownRun) -> list[Figure]:
    """Return the keep rate of every class and block of a run; a click on a class shows it as a line."""
    table = run.table
    if table is None or not _has_units(table):
        return []
    present = [label for label in range(len(table.class_names)) if (table.labels == label).any()]
    rates = {label: table.executed[table.labels == label].mean(axis=0) for label in present}
    rows = [
        {"class": table.class_names[label], "block": block + 1, "keep rate": float(rate)}
        for label in present
        for block, rate in enumerate(rates[label])
    ]
    reading = _map_reading(run.name, table, rates)
    chosen = alt.selection_point(fields=["class"], name="class_shown", empty=False)
    x = alt.X("block:O", title="block", axis=alt.Axis(labelOverlap="greedy", labelSeparation=6, labelAngle=0))
    names = [table.class_names[label] for label in present]
    cells = alt.Chart(data(rows)).mark_rect().encode(
        x=x,
        y=alt.Y("class:N", sort=names, title=None, axis=alt.Axis(labelOverlap=True)),
        color=alt.Color("keep rate:Q", scale=alt.Scale(scheme=SEQUENTIAL, domain=[0, 1])),
        stroke=alt.when(chosen).then(alt.value("#D55E00")).otherwise(alt.value(None)),
        tooltip=["class:N", "block:O", "keep rate:Q"],
    )  # fmt: skip
    mean = alt.Chart(data([{"block": b + 1, "keep rate": float(r)} for b, r in enumerate(_rates(table))]))
    y = alt.Y("keep rate:Q", scale=alt.Scale(domain=[0, 1]))
    bars = mean.mark_bar(color="#b8cfe3").encode(x=x, y=y)
    line = (
        alt.Chart(data(rows))
        .transform_filter(chosen)
        .mark_line(color="#D55E00", point=alt.OverlayMarkDef(aria=False), aria=False)
        .encode(x=x, y=y)
    )
    tall = max(100, min(14 * len(present), 700))
    chart = alt.vconcat(
        alt.layer(bars, line).properties(width=WIDTH, height=90),
        cells.add_params(chosen).properties(width=WIDTH, height=tall),
    ).resolve_scale(x="shared")
    return [
        Figure(
            key=f"keep_map-{run.name}",
            section=_KEEP,
            title=f"Keep rate of every class and block, {run.name}",
            reading=reading,
            columns=["class", *(f"block {block + 1}" for block in range(table.paths.shape[1]))],
            rows=[[table.class_names[label], *map(float, rates[label])] for label in present],
            chart=styled(chart, reading),
        )
    ]


def common_paths(run: ShownRun) -> list[Figure]:
    """Return the commonest paths of a run; a click on one shows its classes, and its images on the page."""
    table = run.table
    if table is None or not table.path_rows().shape[1]:
        return []
    texts = path_names(table)
    counts = Counter(texts)
    shown = counts.most_common(_MOST_PATHS)
    rows = _path_rows(table, texts, shown)
    reading = paths_reading(run.name, table)
    chosen = alt.selection_point(fields=["path"], name="path_shown", on="click", empty=True)
    order = [path for path, _ in shown]
    font = {"labelFont": "monospace", "labelLimit": 420, "labelFontSize": 10}
    base = alt.Chart(data(rows))
    bars = base.mark_bar(color=PALETTE[0]).encode(
        x=alt.X("sum(images):Q", title="images"),
        y=alt.Y("path:N", sort=order, title=None, axis=alt.Axis(**font)),  # type: ignore[arg-type]
        opacity=alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.3)),
        tooltip=["path:N", alt.Tooltip("sum(images):Q")],
    )
    classes = base.transform_filter(chosen).mark_bar(color=PALETTE[1]).encode(
        x=alt.X("sum(images):Q", title="images of the path chosen, or of all of these"),
        y=alt.Y("class:N", sort=list(table.class_names), title=None, axis=alt.Axis(labelOverlap=True)),
        tooltip=["class:N", alt.Tooltip("sum(images):Q")],
    )  # fmt: skip
    tall = alt.Step(20) if len(table.class_names) <= _MOST_CLASSES else 20 * _MOST_CLASSES
    classes = classes.properties(width=340, height=tall)
    chart = alt.vconcat(bars.add_params(chosen).properties(width=340), classes)
    mean = _means(table, texts)
    return [
        Figure(
            key=f"paths-{run.name}",
            section=_PATHS,
            title=f"Commonest paths of {run.name}",
            reading=reading,
            columns=["path", "images", "share", "accuracy", "M MACs", "commonest class"],
            rows=[[path, count, count / len(texts), *mean[path]] for path, count in shown],
            chart=styled(chart, reading),
            paper="figure 8",
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathNumbers:
    """What a run's paths say: bits about image and class, and mean distances in units that differ."""

    paths: int
    image_bits: float
    class_bits: float
    inside: float
    between: float


def path_numbers_of(table: ImageTable) -> PathNumbers:
    """Return the numbers of a table; distances are means over all pairs of images, counted exactly."""
    rows = table.path_rows()
    numbers = torch.from_numpy(np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64))
    labels = torch.from_numpy(table.labels)
    within = [_disagreeing(rows[table.labels == label]) for label in np.unique(table.labels)]
    apart, pairs = sum(part[0] for part in within), sum(part[1] for part in within)
    all_apart, all_pairs = _disagreeing(rows)
    return PathNumbers(
        paths=int(numbers.max()) + 1,
        image_bits=image_bits(numbers),
        class_bits=class_bits(numbers, labels),
        inside=apart / max(1, pairs),
        between=(all_apart - apart) / max(1, all_pairs - pairs),
    )


def paths_reading(name: str, table: ImageTable) -> str:
    """Return in a sentence whether decisions depend on the image at all."""
    known = path_numbers_of(table)
    if known.paths == 1:
        return f"All images take one path in {name}: nothing is decided from the image (0 bits)."
    text = (
        f"{name} takes {known.paths:,} paths, which say {known.image_bits:.2f} bits about the image and "
        f"{known.class_bits:.2f} about its class"
    )
    if known.image_bits < _COLLAPSED:
        return f"{text}: its gates have all but collapsed."
    if known.paths > _MOST_PATHS:
        return f"{text}; the commonest {_MOST_PATHS} are shown."
    return f"{text}."


def distances(run: ShownRun) -> list[Figure]:
    """Return how many units differ between the paths of two images, of one class and of two."""
    table = run.table
    if table is None or table.path_rows().shape[1] < 2 or len(table.labels) < 2:
        return []
    known, rows = path_numbers_of(table), table.path_rows()
    if known.paths == 1:
        return []
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, len(rows), (2, _PAIRS))
    apart = first != second
    first, second = first[apart], second[apart]
    differing = (rows[first] != rows[second]).sum(axis=1)
    same = table.labels[first] == table.labels[second]
    values = []
    for kind, chosen in (("inside a class", same), ("between classes", ~same)):
        counts = np.bincount(differing[chosen], minlength=int(differing.max()) + 1)
        shares = counts / max(1, counts.sum())
        values += [{"pairs": kind, "units": unit, "share": float(share)} for unit, share in enumerate(shares)]
    ratio = known.between / known.inside if known.inside else 1.0
    reading = (
        f"Two images of one class differ in {known.inside:.2f} units of their paths in {run.name}, two of "
        f"different classes in {known.between:.2f}, {ratio:.2f} times as many (means over all pairs)."
    )
    chart = alt.Chart(data(values)).mark_line(point=True).encode(
        x=alt.X("units:Q", title="units in which two paths differ", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("share:Q", title=f"share of {_PAIRS:,} pairs drawn"),
        color=alt.Color("pairs:N", scale=alt.Scale(range=list(PALETTE[:2])), legend=alt.Legend(title=None)),
        strokeDash=alt.StrokeDash("pairs:N", legend=alt.Legend(title=None)),
        tooltip=["pairs:N", "units:Q", "share:Q"],
    )  # fmt: skip
    return [
        Figure(
            key=f"distances-{run.name}",
            section=_PATHS,
            title=f"Distances between paths, {run.name}",
            reading=reading,
            columns=["pairs", "units", "share"],
            rows=[list(row.values()) for row in values],
            chart=styled(chart.properties(width=WIDTH, height=200), reading),
        )
    ]


def information(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return bits of paths about image and class, of all runs side by side."""
    tables = [
        (run.name, run.table) for run in runs if run.table is not None and run.table.path_rows().shape[1]
    ]
    if not tables:
        return []
    found = {name: path_numbers_of(table) for name, table in tables}
    rows = [
        {"run": name, "about": about, "bits": bits}
        for name, known in found.items()
        for about, bits in (("image", known.image_bits), ("class", known.class_bits))
    ]
    least = min(found, key=lambda name: found[name].image_bits)
    most = max(found, key=lambda name: found[name].image_bits)
    reading = f"Paths say most about the image in {most} ({found[most].image_bits:.2f} bits)"
    reading += "." if least == most else f" and least in {least} ({found[least].image_bits:.2f} bits)."
    chart = alt.Chart(data(rows)).mark_bar().encode(
        x=alt.X("bits:Q", title="bits", scale=alt.Scale(domainMin=0)),
        y=alt.Y("run:N", title=None, sort=list(found), axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("about:N", sort=["image", "class"]),
        color=alt.Color("about:N", scale=alt.Scale(domain=["image", "class"], range=list(PALETTE[:2]))),
        tooltip=["run:N", "about:N", "bits:Q"],
    )  # fmt: skip
    columns = ["run", "paths", "bits about the image", "bits about the class", "inside", "between"]
    return [
        Figure(
            key="information",
            section=_PATHS,
            title="What paths say about images",
            reading=reading,
            columns=columns,
            rows=[
                [name, known.paths, known.image_bits, known.class_bits, known.inside, known.between]
                for name, known in found.items()
            ],
            chart=styled(alt.layer(chart, _numbers(chart)).properties(width=WIDTH - 160), reading),
        )
    ]


def _numbers(bars: Any) -> Any:
    """Return the numbers behind bars: a bar of 0 bits cannot be seen."""
    return bars.mark_text(align="left", dx=3, fontSize=10, color="black").encode(
        text=alt.Text("bits:Q", format=".2f"), color=alt.value("black")
    )


def path_names(table: ImageTable) -> list[str]:
    """Return the path of every image with the exit at which it left, as the page writes it."""
    paths = table.path_texts()
    if not len(table.exits):
        return paths
    return [f"{path} exit {exit + 1}".strip() for path, exit in zip(paths, table.exits.tolist(), strict=True)]


def _has_units(table: ImageTable) -> bool:
    return bool(table.paths.shape[1])


def _rates(table: ImageTable) -> Array:
    return np.asarray(table.executed.mean(axis=0))


def _kept(name: str, table: ImageTable) -> str:
    rates = _rates(table)
    always, never = int((rates == 1).sum()), int((rates == 0).sum())
    return (
        f"{name} runs {rates.sum():.1f} of {len(rates)} blocks on average, {always} of them "
        f"always and {never} never."
    )


def _map_reading(name: str, table: ImageTable, rates: dict[int, Array]) -> str:
    spread = np.ptp(np.stack(list(rates.values())), axis=0)
    block = int(spread.argmax())
    if spread[block] == 0:
        return f"In {name} every class runs every block equally often."
    by = {label: float(rate[block]) for label, rate in rates.items()}
    most, least = max(by, key=lambda label: by[label]), min(by, key=lambda label: by[label])
    return (
        f"Classes differ most at block {block + 1} of {name}, which runs for {by[most]:.0%} of class "
        f"{table.class_names[most]} and {by[least]:.0%} of class {table.class_names[least]}."
    )


def _path_rows(table: ImageTable, texts: list[str], shown: list[tuple[str, int]]) -> list[dict[str, Any]]:
    wanted = {path for path, _ in shown}
    pairs = Counter(
        (path, label) for path, label in zip(texts, table.labels.tolist(), strict=True) if path in wanted
    )
    return [
        {"path": path, "class": table.class_names[label], "images": count}
        for (path, label), count in sorted(pairs.items())
    ]


def _means(table: ImageTable, texts: list[str]) -> dict[str, tuple[float, float, str]]:
    """Return accuracy, cost and commonest class of the images of every path."""
    rows: dict[str, list[int]] = {}
    for index, path in enumerate(texts):
        rows.setdefault(path, []).append(index)
    found = {}
    for path, indices in rows.items():
        label = int(np.bincount(table.labels[indices]).argmax())
        accuracy, macs = float(table.correct[indices].mean()), 1e-6 * float(table.macs[indices].mean())
        found[path] = (accuracy, macs, table.class_names[label])
    return found


def _disagreeing(rows: Array) -> tuple[float, int]:
    """Return the sum of differing units over all pairs of rows, and the number of pairs."""
    count = len(rows)
    pairs = count * (count - 1) // 2
    agreeing = 0
    for column in rows.T:
        same = np.bincount(column).astype(np.int64)
        agreeing += int((same * (same - 1) // 2).sum())
    return float(pairs * rows.shape[1] - agreeing), pairs
