"""The recipes that come with the package: found by name, and listed with what their headers say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sidestep.errors import RecipeError, one_line
from sidestep.registry import did_you_mean

_HEADINGS = ("Expected", "Minutes", "Start", "Data", "Notes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCard:
    """What the header of a recipe says.

    Attributes:
        name: of the recipe, which `sidestep train` takes.
        about: paper, method, network and data.
        expected: what it should reach, and where that is from.
        minutes: how long it takes on which hardware.
    """

    name: str
    about: str
    expected: str
    minutes: str


def recipe_file(recipe: Path | str) -> Path:
    """Return the file of a recipe that is given by its path, or by its name if it comes with the package.

    Raises:
        RecipeError: when there is neither.
    """
    path = Path(recipe)
    if path.exists():
        return path
    if path.parent == Path(".") and path.suffix in ("", ".yaml"):
        packaged = _folder() / f"{path.stem if path.suffix else path.name}.yaml"
        if packaged.is_file():
            return packaged
    known = [each.stem for each in _files()]
    raise RecipeError(
        f"recipe {recipe} must be a YAML file, or the name of one that comes with sidestep, and is neither"
        f"{did_you_mean(path.stem, known) or '; `sidestep recipes` lists them'}"
    )


def recipe_cards() -> list[RecipeCard]:
    """Return the cards of all recipes that come with the package, by name."""
    return [_card(path) for path in _files()]


def _card(path: Path) -> RecipeCard:
    """Return the card of a recipe, whose header has a title and then paragraphs that begin with a heading."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    parts = re.split(rf"(?:^|\n)({'|'.join(_HEADINGS)}): ", "\n".join(lines))
    said = {heading: one_line(text) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}
    return RecipeCard(
        name=path.stem,
        about=one_line(parts[0]),
        expected=said.get("Expected", ""),
        minutes=said.get("Minutes", ""),
    )


def _files() -> list[Path]:
    return sorted(_folder().glob("*.yaml"))


def _folder() -> Path:
    """Return where they lie: in the package when it is installed, beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"
