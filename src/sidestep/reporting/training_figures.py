"""Figures of trainings and of sweeps over one setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sidestep.reporting.shown import Figure, ShownRun, shortened
from sidestep.reporting.style import SEQUENTIAL, WIDTH, by_run, data, styled
from sidestep.results.figure_style import PALETTE
from sidestep.results.run_groups import RunGroup, dial_of, run_groups, setting_of

_SECTION = "Training"
# What the RDI-Net paper shows of a setting.
_PAPER = {"gamma": "table 3", "reach": "figure 7 (a)", "alpha": "figure 7 (b)"}


def training_curves(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return accuracy and cost over the steps of all trainings, on training and validation images."""
    rows = [row for run in runs for epoch in run.epochs for row in _of_epoch(run.name, epoch)]
    if not rows:
        return []
    names = list(dict.fromkeys(row["run"] for row in rows))
    reading = " ".join(_ended(name, rows) for name in names)
    base = alt.Chart(data(rows)).encode(x=alt.X("step:Q", title="step"))
    line = base.mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(size=18))
    color = by_run(names, [run.name for run in runs])["color"]
    dash = alt.StrokeDash(
        "images:N",
        scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [4, 3]]),
        legend=alt.Legend(orient="bottom"),
    )
    panels = []
    for measure, title in (("accuracy", "top-1 accuracy, %"), ("cost", "cost, % of the full network")):
        if any(row["measure"] == measure for row in rows):
            scale = alt.Scale(domainMin=0) if measure == "cost" else alt.Scale(zero=False)
            y = alt.Y("value:Q", title=title, scale=scale)
            tips = ["run:N", "images:N", "step:Q", alt.Tooltip("value:Q", format=".2f")]
            panel = line.transform_filter(f"datum.measure == '{measure}'")
            panel = panel.encode(y=y, color=color, strokeDash=dash, tooltip=tips)
            panels.append(panel.properties(width=WIDTH, height=180))
    columns = ["run", "step", "images", "measure", "value"]
    return [
        Figure(
            key="training",
            section=_SECTION,
            title="Accuracy and cost in training",
            reading=reading,
            columns=columns,
            rows=[[row[name] for name in columns] for row in rows],
            chart=styled(alt.vconcat(*panels), reading),
        )
    ]


def _of_epoch(name: str, epoch: Any) -> list[dict[str, Any]]:
    held_out, train = epoch.get("val") or {}, epoch.get("train") or {}
    values = [
        ("validation", "accuracy", held_out.get("accuracy")),
        ("validation", "cost", held_out.get("fraction_of_full")),
        ("training", "accuracy", train.get("accuracy")),
        ("training", "cost", train.get("fraction")),
    ]
    return [
        {"run": name, "step": epoch["step"], "images": images, "measure": measure, "value": 100 * value}
        for images, measure, value in values
        if isinstance(value, int | float)
    ]


def _ended(name: str, rows: Sequence[dict[str, Any]]) -> str:
    own = [row for row in rows if row["run"] == name]
    held_out = [row for row in own if (row["images"], row["measure"]) == ("validation", "accuracy")]
    if not held_out:
        return f"{name} learnt for {own[-1]['step']:,} steps without validation."
    best = max(held_out, key=lambda row: row["value"])
    return (
        f"{name} was best at step {best['step']:,} of {own[-1]['step']:,}, with {best['value']:.2f} % of the "
        "validation images right."
    )


def keep_rates_over_time(run: ShownRun) -> list[Figure]:
    """Return the keep rate of every block after every epoch of a run that was validated."""
    rows = [
        {"step": epoch["step"], "block": block + 1, "keep rate": float(rate)}
        for epoch in run.epochs
        for block, rate in enumerate((epoch.get("val") or {}).get("keep_rates") or [])
    ]
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return []
    ends = {step: [row["keep rate"] for row in rows if row["step"] == step] for step in (steps[0], steps[-1])}
    moved = [abs(after - before) for before, after in zip(*ends.values(), strict=True)]
    block = max(range(len(moved)), key=lambda index: moved[index])
    reading = f"No block of {run.name} has another keep rate than after the first validation."
    if moved[block] > 0:
        reading = (
            f"Block {block + 1} of {run.name} has moved most since validation began: {moved[block]:.2f}."
        )
    chart = alt.Chart(data(rows)).mark_rect().encode(
        x=alt.X("step:O", title="step", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y("block:O", title="block", axis=alt.Axis(labelOverlap=True)),
        color=alt.Color("keep rate:Q", scale=alt.Scale(scheme=SEQUENTIAL, domain=[0, 1])),
        tooltip=["step:O", "block:O", "keep rate:Q"],
    )  # fmt: skip
    by_step = {step: [row["keep rate"] for row in rows if row["step"] == step] for step in steps}
    return [
        Figure(
            key=f"keep_rates_over_time-{run.name}",
            section=_SECTION,
            title=f"Keep rates in the training of {run.name}",
            reading=reading,
            columns=["step", *(f"block {index + 1}" for index in range(len(moved)))],
            rows=[[step, *rates] for step, rates in by_step.items()],
            chart=styled(chart.properties(width=WIDTH, height=max(80, 10 * len(moved))), reading),
        )
    ]


def sweeps(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return accuracy and cost over the one setting in which runs differ, with deviations over seeds."""
    families: dict[str, list[RunGroup]] = {}
    for group in run_groups([run.result for run in runs if run.result is not None]):
        families.setdefault(group.results[0].recipe_name, []).append(group)
    figures: list[Figure] = []
    for name, family in families.items():
        dial = dial_of(family, words=True)
        if dial is not None:
            figures.append(_sweep(name, dial, family, len(figures)))
    return figures


def _sweep(name: str, dial: str, line: Sequence[RunGroup], number: int) -> Figure:
    settings = {id(group): setting_of(group.results[0].recipe, dial) for group in line}
    # Words, such as `auto`, stand behind numbers.
    line = sorted(line, key=lambda g: (isinstance(settings[id(g)], str), settings[id(g)]))
    rows = []
    for group in line:
        for measure, (mean, deviation) in (("accuracy", group.percent), ("cost", group.gflops)):
            scale = 1 if measure == "accuracy" else 500
            mean, deviation = scale * mean, scale * deviation
            row = {"setting": settings[id(group)], "measure": measure, "mean": mean, "deviation": deviation}
            rows.append(
                row | {"seeds": len(group.results), "low": mean - deviation, "high": mean + deviation}
            )
    own = [row for row in rows if row["measure"] == "accuracy"]
    best = max(own, key=lambda row: float(row["mean"]))
    seeds = f"over {best['seeds']} seeds" if best["seeds"] > 1 else "with one seed"
    spread = f" ± {best['deviation']:.2f}" if best["seeds"] > 1 else ""
    reading = (
        f"Accuracy is highest with {dial} {shortened(best['setting'])}: {best['mean']:.2f}{spread} % {seeds}."
    )
    words = any(isinstance(value, str) for value in settings.values())
    x = (
        alt.X(
            "setting:O", title=dial, sort=[settings[id(group)] for group in line], axis=alt.Axis(labelAngle=0)
        )
        if words
        else alt.X("setting:Q", title=dial, scale=alt.Scale(zero=False, padding=10))
    )
    panels = []
    for measure, title in (("accuracy", "top-1 accuracy, %"), ("cost", "M MACs per image")):
        base = alt.Chart(data(rows)).transform_filter(f"datum.measure == '{measure}'")
        base = base.encode(x=x)
        y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
        marks = base.mark_line(point=True, color=PALETTE[0]).encode(
            y=y, tooltip=["setting:N", "mean:Q", "deviation:Q", "seeds:Q"]
        )
        bars = base.mark_rule(color=PALETTE[0]).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
        panels.append(alt.layer(bars, marks).properties(width=260, height=200))
    columns = ["setting", "measure", "mean", "deviation", "seeds"]
    return Figure(
        key=f"sweep-{number + 1}",
        section="Sweeps",
        title=f"What {dial} does ({name})",
        reading=reading,
        columns=columns,
        rows=[[row[column] for column in columns] for row in rows],
        chart=styled(alt.hconcat(*panels), reading),
        paper=_PAPER.get(dial.rpartition(".")[2], ""),
    )
