"""What a user typed -> arguments of a command's function, with one sentence for every mistake."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from sidestep.cli.options import Command, alternatives
from sidestep.errors import UsageError

# Keys of recipes without a dot, such as --name.
_RECIPE_KEYS = ("name", "method", "model", "data", "training")


def arguments_of(command: Command, typed: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command's function.

    Args:
        command: the command.
        typed: what the user typed behind the command's name.

    Raises:
        UsageError: for an option that the command does not have, or a value that it does not take.
    """
    own, overrides = split(command, typed)
    try:
        values = _parser(command).parse_args(own).as_dict()
    except ArgumentError as error:
        raise UsageError(_sentence(command, str(error))) from error
    for option in command.options:
        value = values[option.name]
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{option.label} must be a finite number, got {value}")
    arguments: dict[str, Any] = {}
    for name, group in command.groups.items():
        of_group = [option.name for option in command.options if option.parameter == name]
        arguments[name] = group(**{each: values[each] for each in of_group})
    arguments |= {
        option.parameter: values[option.name]
        for option in command.options
        if option.parameter not in command.groups
    }
    if command.overrides is not None:
        arguments[command.overrides[0]] = overrides
    return arguments


def without_imports(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line without `--import MODULE`, which every command takes, and the modules.

    Raises:
        UsageError: when no module follows.
    """
    rest: list[str] = []
    modules: list[str] = []
    items = iter(typed)
    for item in items:
        name, equals, value = item.partition("=")
        if item == "--":
            return [*rest, item, *items], modules
        if name != "--import":
            rest.append(item)
            continue
        value = value if equals else next(items, "")
        if not value or value.startswith("--"):
            raise UsageError("--import needs a module: its name, or its .py file")
        modules.append(value)
    return rest, modules


def split(command: Command, typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what belongs to the command, and what to the recipes that it reads.

    An option that the command has is its own. Any other one with a dot in its name (`--method.target`), or
    named like a part of recipes (`--name`), is a recipe's, together with the value behind it.

    Raises:
        UsageError: for an option that is neither.
    """
    known = {"--help", *(option.label for option in command.options if not option.is_positional)}
    own: list[str] = []
    overrides: list[str] = []
    rest = list(typed)
    while rest:
        item = rest.pop(0)
        name, equals, _ = item.partition("=")
        if item == "--":
            return [*own, item, *rest], overrides
        if not name.startswith("--") or name in known:
            own.append(item)
        elif command.overrides is not None and ("." in name or name.removeprefix("--") in _RECIPE_KEYS):
            overrides.append(item)
            if not equals and rest and not rest[0].startswith("--"):
                overrides.append(rest.pop(0))
        else:
            hint = "a key of a recipe has a dot, such as --method.target" if command.overrides else ""
            raise UsageError(
                f"{command.name} has no option {name}; {way_out(name, known, command.name, hint)}"
            )
    return own, overrides


def way_out(name: str, known: Iterable[str], command: str = "", hint: str = "") -> str:
    """Return what a user may have meant, or else a hint, or where everything is that can be typed."""
    # Options have their dashes in common, so they have to be nearer than other words.
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    if matches:
        return f"did you mean {matches[0]}?"
    return hint or f"see `{' '.join(['sidestep', command]).strip()} --help`"


def _parser(command: Command) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    for option in command.options:
        if option.is_flag:
            parser.add_argument(option.label, action="store_true")
        elif option.is_positional:
            parser.add_argument(option.name, type=option.value_type, nargs="+" if option.is_list else None)
        elif option.is_list:
            parser.add_argument(option.label, type=option.value_type, action="append", default=[])
        else:
            parser.add_argument(option.label, type=option.hint, default=option.default)
    return parser


def _sentence(command: Command, message: str) -> str:
    """Return what jsonargparse has found wrong, as one sentence in the words of this command line."""
    wrong, value, choices = message.splitlines()[0], "", []
    if found := re.search(r'Parser key "(\w+)":.*value: (.*)$', message, re.DOTALL):
        option = next(each for each in command.options if each.name == found[1])
        value, choices = found[2], _choices(option.value_type)
        wrong = f"{option.label} must be {_kind(option.value_type)}, got {value!r}"
    elif "arguments are required" in message:
        needed = [option.label for option in command.options if option.is_positional]
        wrong = f"{command.name} needs {' and '.join(needed)}"
    elif found := re.match(r"argument (--\S+): expected", message):
        wrong = f"{found[1]} needs a value"
    elif found := re.match(r"argument (--\S+): ignored explicit", message):
        wrong = f"{found[1]} takes no value"
    elif found := re.match(r"unrecognized arguments: (.*)", message):
        wrong = f"{command.name} does not take {found[1]!r}"
    return f"{wrong}; {way_out(value, choices, command.name)}"


def _kind(hint: Any) -> str:
    """Return what values of a type are."""
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    choices = _choices(hint)
    if choices:
        return f"one of {', '.join(choices)}"
    return " or ".join(names.get(each, "a text") for each in alternatives(hint))


def _choices(hint: Any) -> list[str]:
    return [
        str(each) for kind in alternatives(hint) if get_origin(kind) is Literal for each in get_args(kind)
    ]
