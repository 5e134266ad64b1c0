"""Help texts: of the command line, of a command, and of the keys of a recipe."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from sidestep.cli.options import Command, Option, descriptions, value_name

if TYPE_CHECKING:
    from sidestep.runs.recipe import Recipe

WIDTH = 80
# The longest left-hand side of which the text stands in the same line.
_LEFT = 26
_NO_BREAK = "\u00a0"

Row = tuple[str, str]


def overview(commands: Iterable[Command]) -> str:
    """Return the help of the command line: what commands there are."""
    rows = [(command.name, command.summary.removesuffix(".")) for command in commands]
    options = [
        ("--help", "show this, or with a command what it takes"),
        ("--version", "show the version"),
        (
            "--import MODULE",
            "import a module or .py file of your own first, which registers a method, model, "
            "source, criterion or export target; with any command, may be given again",
        ),
    ]
    about = "Networks that decide per image which of their parts to execute."
    return "\n\n".join(
        ["usage: sidestep COMMAND [options]", about, _table("commands", rows), _table("options", options)]
    )


def command_help(command: Command) -> str:
    """Return the help of a command."""
    positional = [option for option in command.options if option.is_positional]
    named = [option for option in command.options if not option.is_positional]
    usage = ["usage: sidestep", command.name, *(_usage(option) for option in positional)]
    rows = [(_left(option), _text(option)) for option in named]
    if command.overrides is not None:
        rows.append(("--KEY VALUE", command.overrides[1]))
    parts = [" ".join([*usage, "[options]"]), _paragraph(command.summary)]
    parts += [_paragraph(text) for text in command.details]
    if positional:
        parts.append(_table("arguments", [(option.label, _text(option)) for option in positional]))
    return "\n\n".join([*parts, _table("options", [*rows, ("--help", "show this")])])


def recipe_help(command: str, path: Path, recipe: Recipe) -> str:
    """Return the keys of a recipe, with the values that they have in it."""
    about = f"Keys of the recipe; `sidestep {command} --help` shows the other options."
    values = recipe.as_dict()
    parts = {
        f"method {recipe.method}": ("method", recipe.settings),
        f"model {recipe.model.name}": ("model", recipe.model),
        "data": ("data", recipe.data),
        "training": ("training", recipe.training),
    }
    rows = {title: list(_keys(values[name], part, name)) for title, (name, part) in parts.items()}
    tables = [_table(title, known) for title, known in rows.items() if known]
    return "\n\n".join([f"usage: sidestep {command} {path} [--KEY VALUE ...]", _paragraph(about), *tables])


def _keys(values: Mapping[str, Any], part: Any, place: str, *, tell: bool = True) -> Iterator[Row]:
    """Yield every key below a place of a recipe, what it is, and what the recipe says.

    Args:
        values: plain values of the recipe there.
        part: the dataclass that they have become; what it leaves to a `settings` of its own is there.
        place: key of all of them.
        tell: whether to say what they are; once is enough for the items of a list.
    """
    hints, texts = get_type_hints(type(part)), descriptions(type(part))
    for name, value in values.items():
        key, child = f"{place}.{name}", getattr(part, name, None)
        if is_dataclass(child):
            yield from _keys(value, child, key, tell=tell)
        elif isinstance(child, list) and child and is_dataclass(child[0]):
            for index, (item, each) in enumerate(zip(value, child, strict=True)):
                yield from _keys(item, each, f"{key}.{index}", tell=index == 0)
        elif name in hints:
            now = "(not set)" if value is None else f"(now:{_NO_BREAK}{_shown(value)})"
            text = f"{texts.get(name, '')} {now}" if tell else now
            yield f"--{key} {value_name(hints[name])}", text
    if is_dataclass(own := getattr(part, "settings", None)):
        left = {name: value for name, value in values.items() if name not in hints}
        yield from _keys(left, own, place, tell=tell)


def _usage(option: Option) -> str:
    return option.label + ("..." if option.is_list else "")


def _left(option: Option) -> str:
    return option.label if option.is_flag else f"{option.label} {value_name(option.value_type)}"


def _text(option: Option) -> str:
    if option.default in (MISSING, None) or option.is_flag or option.is_list:
        return option.text
    return f"{option.text} (default:{_NO_BREAK}{_shown(option.default)})"


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _paragraph(text: str) -> str:
    return "\n".join(_wrapped(text, WIDTH))


def _table(title: str, rows: Iterable[Row]) -> str:
    """Return rows under a title, with their texts in one column."""
    known = list(rows)
    left = min(max(len(row[0]) for row in known), _LEFT)
    lines = [f"{title}:"]
    for name, text in known:
        wrapped = _wrapped(text, WIDTH - left - 4)
        if len(name) > left:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {name:<{left}}  {wrapped[0]}".rstrip()]
        lines += [f"  {'':<{left}}  {line}" for line in wrapped[1:]]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]
