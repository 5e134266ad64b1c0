"""Options from typed functions: parameters are options, their docstring is the help.

A command is a function. What it takes without a name stands in front of the `*` of its signature; a list
there takes one or more. Everything behind it is an option: `num_nodes: int` is `--num-nodes N`, a bool that
is False by default is a flag, a list is an option that may be given again. A parameter whose type is a
dataclass stands for the fields of that class, which several commands can share; `Annotated[Class,
Only("field")]` takes some of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser


class Overrides(list[str]):
    """Settings of recipes as they were typed: `--method.target`, `0.4`."""


class Only:
    """Names the fields of a dataclass that a command has as options."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a command, or what it takes without a name.

    Attributes:
        name: of the parameter or field.
        hint: its type.
        default: what it is when it is not given; MISSING where it has to be.
        text: what its docstring says.
        is_positional: whether it is given without a name.
        parameter: which of the function's parameters it belongs to; itself, or a dataclass.
    """

    name: str
    hint: Any
    default: Any
    text: str
    is_positional: bool
    parameter: str

    @property
    def label(self) -> str:
        """Return what users write, without a value."""
        return self.name.upper() if self.is_positional else "--" + self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """Return whether it takes no value."""
        return self.hint is bool and self.default is False

    @property
    def is_list(self) -> bool:
        """Return whether it takes several values."""
        return get_origin(self.hint) is list

    @property
    def value_type(self) -> Any:
        """Return the type of one value."""
        return get_args(self.hint)[0] if self.is_list else self.hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of the command line.

    Attributes:
        name: of the command.
        function: runs it.
        summary: first line of its docstring.
        details: what else its docstring says, paragraph by paragraph.
        options: what it takes.
        groups: dataclasses that some of its parameters are, by the names of these.
        overrides: the parameter that takes settings of recipes and its help, if there is one.
    """

    name: str
    function: Callable[..., None]
    summary: str
    details: list[str]
    options: list[Option]
    groups: dict[str, type]
    overrides: tuple[str, str] | None


def command_of(name: str, function: Callable[..., None]) -> Command:
    """Return the command that a typed function with a docstring is."""
    doc, texts = docstring_parser.parse(inspect.getdoc(function) or ""), descriptions(function)
    hints = get_type_hints(function, include_extras=True)
    options: list[Option] = []
    groups: dict[str, type] = {}
    overrides = None
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        group = getattr(hint, "__origin__", hint)
        if hint is Overrides:
            overrides = (parameter.name, texts[parameter.name])
        elif is_dataclass(group):
            assert isinstance(group, type)
            groups[parameter.name] = group
            only = [name for note in getattr(hint, "__metadata__", ()) for name in note.names]
            options += _fields(group, parameter.name, only)
        else:
            options.append(
                Option(
                    # Words of Python's own have an underscore behind them.
                    name=parameter.name.rstrip("_"),
                    hint=hint,
                    default=MISSING if parameter.default is parameter.empty else parameter.default,
                    text=texts[parameter.name],
                    is_positional=parameter.kind is not parameter.KEYWORD_ONLY,
                    parameter=parameter.name,
                )
            )
    return Command(
        name=name,
        function=function,
        summary=doc.short_description or "",
        details=[one_line(part) for part in (doc.long_description or "").split("\n\n") if part],
        options=options,
        groups=groups,
        overrides=overrides,
    )


def descriptions(documented: Any) -> dict[str, str]:
    """Return what a docstring says about parameters or attributes, each on one line without a full stop."""
    parameters = docstring_parser.parse(inspect.getdoc(documented) or "").params
    return {each.arg_name: one_line(each.description or "").removesuffix(".") for each in parameters}


def alternatives(hint: Any) -> list[Any]:
    """Return the types that a type is made of, None aside."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [each for each in union if each is not type(None)]


def value_name(hint: Any) -> str:
    """Return what stands for a value of a type in help texts: `N`, or `best|last`."""
    names = {int: "N", float: "X", str: "TEXT", bool: "BOOL", Path: "PATH"}
    found = []
    for each in alternatives(hint):
        if get_origin(each) is Literal:
            found.append("|".join(map(str, get_args(each))))
        elif get_origin(each) in (list, tuple):
            found.append("LIST")
        else:
            found.append(names.get(each, "MAPPING"))
    return "|".join(dict.fromkeys(found))


def one_line(text: str) -> str:
    """Return a text with all white space as single spaces."""
    return " ".join(text.split())


def _fields(group: type, parameter: str, only: list[str]) -> list[Option]:
    """Return the fields of a dataclass as options, all of them unless some are named."""
    hints, texts = get_type_hints(group), descriptions(group)
    return [
        Option(
            name=field.name,
            hint=hints[field.name],
            default=field.default,
            text=texts[field.name],
            is_positional=False,
            parameter=parameter,
        )
        for field in fields(group)
        if not only or field.name in only
    ]
