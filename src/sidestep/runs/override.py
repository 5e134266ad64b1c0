"""Settings typed on the command line: a text, read in the way that its setting asks for."""

from __future__ import annotations

import types
import typing
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

import yaml


class OverrideText(str):
    """A setting as it was typed. What it means depends on the type of the setting."""


class NotReadableError(Exception):
    """A text that no type of the setting can read."""


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type is made of, itself alone unless it is a union."""
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def read_text(hint: Any, text: OverrideText) -> Any:
    """Return the value that a text stands for.

    A setting that takes a text gets it as it was typed, `#` and `@` and digits included. Numbers are read as
    Python reads them, so that 1e-3 is one; lists and groups as YAML.

    Args:
        hint: type of the setting.
        text: what was typed.

    Raises:
        NotReadableError: for a text that is no YAML where it would have to be.
    """
    kinds = alternatives(hint)
    if hint is Any:
        return text  # whoever knows the type reads it later
    if text in ("null", "~") and type(None) in kinds:
        return None
    for kind in kinds:
        for choice in get_args(kind) if get_origin(kind) is Literal else ():
            if str(choice) == text:
                return choice
    if str in kinds:
        return str(text)
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise NotReadableError(str(error)) from error


def split_texts(values: str) -> list[OverrideText]:
    """Return the texts between commas; those inside of brackets, braces and quotes part nothing.

    >>> split_texts("[layer1],[layer1, layer2]")
    ['[layer1]', '[layer1, layer2]']
    """
    texts, depth, quote = [""], 0, ""
    for letter in values:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            texts.append("")
        else:
            texts[-1] += letter
    return [OverrideText(text.strip()) for text in texts]
