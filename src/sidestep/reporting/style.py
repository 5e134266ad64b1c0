"""One style for all figures of a report: colours that the colour-blind tell apart, shapes beside colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sidestep.results.figure_style import PALETTE

GREY = "#6b6b6b"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "stroke")
# What dark pages show in place of colours that stand on white; all others can be seen on both.
DARK = {
    "white": "#161616", "black": "#e8e8e8", "#000000": "#e8e8e8", GREY: "#a6a6a6", "#e5e5e5": "#383838",
    "#b8cfe3": "#3f5c75",
}  # fmt: skip
# One hue from light to dark: readable in grey.
SEQUENTIAL: Any = "viridis"
WIDTH = 560


def data(rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as Altair takes them, without a limit of their number."""
    # A tuple is not copied with every change of a chart.
    return alt.InlineData(values=tuple(rows))


def by_run(names: Sequence[str], order: Sequence[str]) -> dict[str, Any]:
    """Return the encodings that tell runs apart, in colour and in shape; a run has the same in all figures.

    Args:
        names: of the runs of a figure, in the order of the legend.
        order: names of all runs of the report.
    """
    known = list(dict.fromkeys([*order, *names]))
    places = [known.index(name) for name in names]
    colors = [PALETTE[place % len(PALETTE)] for place in places]
    shapes = [SHAPES[place % len(SHAPES)] for place in places]
    legend = alt.Legend(title="run", labelLimit=400, orient="top", columns=3, symbolLimit=0)
    return {
        "color": alt.Color("run:N", scale=alt.Scale(domain=list(names), range=colors), legend=legend),
        "shape": alt.Shape("run:N", scale=alt.Scale(domain=list(names), range=shapes), legend=legend),
    }


def styled(chart: Any, description: str) -> Any:
    """Return a chart with the fonts and grid of all, and what screen readers say of it.

    Args:
        chart: a top-level one.
        description: its finding.
    """
    return (
        chart.properties(description=description)
        .configure(font="system-ui, sans-serif", background="white")
        .configure_axis(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            gridColor="#e5e5e5",
            domainColor=GREY,
            tickColor=GREY,
            labelColor="black",
            titleColor="black",
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, labelColor="black", titleColor="black")
        .configure_title(color="black")
        .configure_view(stroke=None)
        .configure_header(labelFontSize=12, titleFontSize=12)
    )
