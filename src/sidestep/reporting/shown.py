"""What a report is made from: runs, and what one figure of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidestep.reporting.image_table import ImageTable
from sidestep.results.run_result import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """What a report knows of a run; what a run does not have is None or empty.

    Attributes:
        name: unique in the report.
        result: what the finished run says of itself.
        table: what it did with every image.
        epochs: rows of its metrics.
        checkpoint: SHA-256 of the weights that the table is of.
    """

    name: str
    result: RunResult | None = None
    table: ImageTable | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Images that are shown in a row, by their numbers in the split."""

    title: str
    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with everything that is said beside it.

    Attributes:
        key: part of file names and addresses, unique in a report.
        section: heading under which it stands.
        title: what it shows.
        reading: what the data say, one sentence.
        columns: names of the table's columns.
        rows: of the table; numbers are shortened on the page alone.
        chart: Altair's chart, or None where the table is all there is.
        galleries: pictures below it.
        paper: figure of the RDI-Net paper that shows the same, or nothing.
    """

    key: str
    section: str
    title: str
    reading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    chart: Any = field(default=None, compare=False)
    galleries: tuple[Gallery, ...] = ()
    paper: str = ""


def shortened(value: Any) -> str:
    """Return a value as tables on pages show it: numbers with four digits.

    >>> shortened(0.123456), shortened(12), shortened(None), shortened(54_321_000.0)
    ('0.1235', '12', '', '54321000')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)
