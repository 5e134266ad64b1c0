"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sidestep.errors import RecipeError


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    >>> table(["run", "accuracy"], [["a", "93.1"]])
    ['| run | accuracy |', '| --- | --- |', '| a | 93.1 |']

    What users have named cannot end a cell or a row:

    >>> table(["run"], [["a|b"]])[-1]
    '| a\\\\|b |'

    Args:
        names: of the columns.
        rows: one cell per column.
    """
    shown = ([_cell(text) for text in row] for row in (names, ["---"] * len(names), *rows))
    return [f"| {' | '.join(row)} |" for row in shown]


def check_page(out: Path) -> None:
    """Return if a page can have a name.

    Raises:
        RecipeError: for a page that is no `.md` file.
    """
    if out.suffix != ".md":
        raise RecipeError(f"the page must be a .md file, got {out}; figure and data get its name")


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")
