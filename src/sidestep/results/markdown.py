"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    >>> table(["run", "accuracy"], [["a", "93.1"]])
    ['| run | accuracy |', '| --- | --- |', '| a | 93.1 |']

    Args:
        names: of the columns.
        rows: one cell per column.
    """
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]
