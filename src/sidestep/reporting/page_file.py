"""One HTML file that opens from disk in any browser, and asks no network for anything."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import vl_convert

from sidestep.reporting.shown import Figure, shortened
from sidestep.reporting.style import DARK

_HERE = Path(__file__).parent
# Rows of a table on the page; the folder of figures has all of them.
_MOST_ROWS = 300
# What a page may load: itself, and what it shows of images. Vega compiles what it draws.
_SELF = "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'"
POLICY = f"default-src 'none'; {_SELF}; img-src data:"
_LOADED = "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
LIVE_POLICY = f"default-src 'none'; {_SELF}; {_LOADED}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveModel:
    """A network that a server answers for.

    Attributes:
        name: by which it is asked.
        size: (H, W) of its images.
        channels: of them.
        class_names: of its answers; may be empty.
        budgets: rising, as shares of the MACs; one for a network without a choice.
        accuracies: of the budgets, None where nobody has measured it.
        full_macs: of the static network.
        exits: number of exits, the last included.
        about: what runs it.
    """

    name: str
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    budgets: tuple[float, ...]
    accuracies: tuple[float | None, ...]
    full_macs: float
    exits: int
    about: str


def page(
    title: str,
    figures: Sequence[Figure],
    *,
    notes: Sequence[str],
    explorer: dict[str, Any],
    sliders: Sequence[dict[str, Any]],
    live: Sequence[LiveModel] | None = None,
) -> str:
    """Return the page.

    Args:
        title: of it.
        figures: in their order; those of one section follow each other.
        notes: what could not be shown, a sentence each.
        explorer: data of `explorer_data`.
        sliders: data of `slider_data`, by the name of the run that they belong to.
        live: the networks that the page's server answers for; None is a page that opens from disk.
    """
    sections = list(dict.fromkeys(figure.section for figure in figures))
    numbers = {figure.key: f"figure-{number}" for number, figure in enumerate(figures, start=1)}
    specs = {numbers[figure.key]: figure.chart.to_dict() for figure in figures if figure.chart is not None}
    galleries = {
        numbers[figure.key]: [{"title": each.title, "ids": each.ids} for each in figure.galleries]
        for figure in figures
        if figure.galleries
    }
    paths = {
        numbers[figure.key]: figure.key.partition("-")[2]
        for figure in figures
        if figure.key.startswith("paths-")
    }
    values = {
        "specs": specs,
        "galleries": galleries,
        "paths": paths,
        "sliders": list(sliders),
        "dark": DARK,
        "live": None if live is None else [asdict(model) for model in live],
        **explorer,
    }
    body = [_section(name, [f for f in figures if f.section == name], numbers, sliders) for name in sections]
    template = Template((_HERE / "page.html").read_text())
    return template.substitute(
        title=escape(title),
        policy=POLICY if live is None else LIVE_POLICY,
        style=(_HERE / "page.css").read_text(),
        navigation="".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections),
        try_it="" if live is None else '<li><a href="#live">Try it</a></li>',
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        hidden="" if notes else "hidden",
        body="\n".join(body),
        data=json.dumps(_finite(values), separators=(",", ":")).replace("<", "\\u003c"),
        vega=_vega(),
        script=(_HERE / "page.js").read_text(),
        live="" if live is None else (_HERE / "live.html").read_text(),
        live_script="" if live is None else f"<script>\n{(_HERE / 'live.js').read_text()}</script>",
    )


def _section(
    name: str, figures: Sequence[Figure], numbers: dict[str, str], sliders: Sequence[dict[str, Any]]
) -> str:
    shown = "\n".join(_figure(figure, numbers[figure.key], sliders) for figure in figures)
    return f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>\n{shown}</section>'


def _figure(figure: Figure, number: str, sliders: Sequence[dict[str, Any]]) -> str:
    parts = [f"<h3>{escape(figure.title)}</h3>", f'<p class="reading">{escape(figure.reading)}</p>']
    if figure.paper:
        parts.append(f'<p class="paper">As {escape(figure.paper)} of the RDI-Net paper.</p>')
    if figure.chart is not None:
        parts.append(_scrolling(figure.title, f'<div class="chart" id="{number}"></div>'))
    if figure.galleries:
        parts.append(f'<div class="galleries" id="{number}"></div>')
    for place, slider in enumerate(sliders):
        if figure.key == f"budgets-{slider['name']}":
            parts.append(_slider(place, slider))
    opened = " open" if figure.chart is None and not figure.galleries else ""
    parts.append(f"<details{opened}><summary>Table</summary>{_table(figure)}</details>")
    return f"<figure>{''.join(parts)}</figure>"


def _slider(place: int, slider: dict[str, Any]) -> str:
    last = len(slider["budgets"]) - 1
    return (
        f'<div class="slider" id="slider-{place}"><label for="range-{place}">Budget, as a share of the full '
        f'network</label><input type="range" id="range-{place}" min="0" max="{last}" step="1" '
        f'value="{slider["start"]}"><output for="range-{place}"></output><div class="rates"></div></div>'
    )


def _table(figure: Figure) -> str:
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in figure.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(shortened(value))}</td>" for value in row) + "</tr>"
        for row in figure.rows[:_MOST_ROWS]
    )
    more = ""
    if len(figure.rows) > _MOST_ROWS:
        more = f"<p>The first {_MOST_ROWS} of {len(figure.rows):,} rows; a folder of figures has all.</p>"
    label = escape(figure.title)
    table = f"<table><caption>{label}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _scrolling(f"Table: {figure.title}", table) + more


def _scrolling(label: str, content: str) -> str:
    """Return a part of the page that may be wider than a screen, and scrolls by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}">{content}</div>'


def _anchor(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _vega() -> str:
    """Return Vega, Vega-Lite and their embedding as one script, as vl-convert carries them."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _finite(values: Any) -> Any:
    """Return values without numbers that JSON does not know."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
