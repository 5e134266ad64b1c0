"""Plain values -> settings: dataclasses built from a recipe's mappings, with every error at once."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from sidestep.errors import RecipeError
from sidestep.registry import Registry, did_you_mean
from sidestep.runs.override import NotReadableError, OverrideText, alternatives, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a recipe that names an item of a registry, beside settings of that item.

    Attributes:
        registry: where the name is looked up.
        config: dataclass that holds the name, the item's settings as `settings`, and what all items share;
            None where nothing is shared, and the item's settings are all there is.
        common: item -> keys of `config` that it knows.
    """

    registry: Registry[Any]
    config: type | None = None
    common: Callable[[Any], Collection[str]] = lambda item: ()

    def name_in(self, values: dict[str, Any]) -> Any:
        """Return the name in a mapping, or the default."""
        key = self.registry.key
        default = {item.name: item.default for item in fields(self.config)}[key] if self.config else None
        return values.get(key, default)

    def build(self, values: Any, place: str, errors: list[str]) -> Any:
        """Return an instance of `config`, or else of the item's settings, or None after adding to `errors`.

        Args:
            values: what the recipe says.
            place: where it says that, for errors.
            errors: are added to.
        """
        values = as_mapping(values)
        if not isinstance(values, dict):
            errors.append(f"{place} must be a mapping, got {values!r}")
            return None
        name, key, before = self.name_in(values), self.registry.key, len(errors)
        name = str(name) if isinstance(name, OverrideText) else name
        try:
            item = self.registry[name]
        except RecipeError as error:
            errors.append(f"{place}.{error}")
            return None
        own, common = [field.name for field in fields(item.settings)], self.common(item)
        known = {key, *own, *common}
        owner = f"{self.registry.kind} {name}"
        if taken := {key, *common}.intersection(own):
            errors.append(f"settings of {owner} must leave the key {min(taken)} to all others; rename it")
            return None
        errors += [unknown(each, place, owner, known) for each in values if each not in known]
        settings = build(item.settings, _some(values, own), place, errors)
        if self.config is None:
            return settings
        shared = convert(self.config, _some(values, common), place, errors)
        if len(errors) > before:
            return None
        return construct(self.config, {key: name, "settings": settings, **shared}, place, errors)

    def plain(self, config: Any) -> dict[str, Any]:
        """Return the mapping that `build` makes an instance of `config` from."""
        values = as_plain(config)
        own, key = values.pop("settings"), self.registry.key
        return {key: values[key], **_some(values, self.common(self.registry[values[key]])), **own}


def build(cls: type, values: Any, place: str, errors: list[str], base: Any = None) -> Any:
    """Return an instance of a dataclass made from a mapping, or None after adding to `errors`.

    Args:
        cls: the dataclass.
        values: what the recipe says.
        place: where it says that, for errors.
        errors: are added to.
        base: instance that says what the mapping leaves out, as settings inside of others have it: a method
            may give its gate other defaults than the class of gates does. None is the defaults of `cls`.
    """
    values = as_mapping(values)
    if not isinstance(values, dict):
        errors.append(f"{place} must be a mapping, got {values!r}")
        return None
    names = {field.name for field in fields(cls) if field.init}
    before = len(errors)
    errors += [unknown(key, place, place, names) for key in values if key not in names]
    built = convert(cls, _some(values, names), place, errors, base)
    hints = get_type_hints(cls)
    for field in fields(cls):
        required = base is None and field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            errors.append(
                f"{place}.{field.name} is required, got nothing; set it to a {_describe(hints[field.name])}"
            )
    if base is not None:
        built = {name: getattr(base, name) for name in names} | built
    return None if len(errors) > before else construct(cls, built, place, errors)


def convert(
    cls: type, values: dict[str, Any], place: str, errors: list[str], base: Any = None
) -> dict[str, Any]:
    """Return values of fields of a dataclass in the types of these fields; errors are added.

    Args:
        cls: the dataclass.
        values: of some of its fields, as the recipe says them.
        place: where it says them.
        errors: are added to.
        base: see `build`; its fields stand for what settings inside of others leave out.
    """
    hints = get_type_hints(cls)
    known = fields(cls)
    bases = {each.name: _default(each) if base is None else getattr(base, each.name) for each in known}
    return {
        name: _value(hints[name], value, f"{place}.{name}", errors, bases[name])
        for name, value in values.items()
    }


def construct(cls: type, values: dict[str, Any], place: str, errors: list[str]) -> Any:
    """Return an instance with these values, or None after adding what it refuses to `errors`."""
    try:
        return cls(**values)
    except RecipeError as error:
        errors.append(f"{place}.{error}")
        return None


def unknown(key: Any, place: str, owner: str, known: Collection[str]) -> str:
    """Return the error of a key that no one knows.

    Args:
        key: as it was given.
        place: where, or "" at the top.
        owner: whose setting it is not.
        known: keys that there are.
    """
    name = f"{place}.{key}" if place else str(key)
    hint = did_you_mean(key, known) or "; known: " + ", ".join(sorted(known))
    return f"{name} is no setting of {owner}{hint}"


def as_mapping(values: Any) -> Any:
    """Return a group of settings that was typed on the command line as the mapping that it is."""
    with suppress(NotReadableError):
        return read_text(dict, values) if isinstance(values, OverrideText) else values
    return values


def as_plain(value: Any) -> Any:
    """Return plain values: dataclasses as mappings and tuples as lists, as YAML has neither."""
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _some(values: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _default(field: Field[Any]) -> Any:
    """Return what a field is when nothing is said, or None."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _value(hint: Any, value: Any, place: str, errors: list[str], base: Any = None) -> Any:
    if isinstance(value, OverrideText) and not is_dataclass(hint):
        with suppress(NotReadableError):
            value = read_text(hint, value)
    nested = [each for each in alternatives(hint) if is_dataclass(each)]
    if nested and (hint is nested[0] or isinstance(value, dict)):
        cls = typing.cast(type, nested[0])
        return build(cls, value, place, errors, base if isinstance(base, cls) else None)
    if get_origin(hint) is list and is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        return [
            _value(get_args(hint)[0], item, f"{place}.{index}", errors) for index, item in enumerate(value)
        ]
    if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]) and isinstance(value, dict):
        return {key: _value(get_args(hint)[1], item, f"{place}.{key}", errors) for key, item in value.items()}
    try:
        parsed = value if _has_type(hint, value) else _parsed(hint, value)
    except ArgumentError:
        way_out = did_you_mean(value, _choices(hint)) or _quoting(hint, value)
        errors.append(f"{place} must be a {_describe(hint)}, got {value!r}{way_out}")
        return None
    if not _is_finite(parsed):
        errors.append(f"{place} must be a finite {_describe(hint)}, got {value!r}")
        return None
    return tuple(parsed) if get_origin(hint) is tuple else parsed


def _has_type(hint: Any, value: Any) -> bool:
    """Return whether a value is what a hint says without doubt; a parser takes milliseconds to find that.

    Texts are left to it where a hint says more than text: "3" may be a number, and "null" nothing.
    """
    if value is None:
        return _takes_null(hint)
    kinds = [each for each in alternatives(hint) if each is not type(None)]
    if len(kinds) > 1:
        return False
    if get_origin(kinds[0]) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in _choices(kinds[0]))
    return type(value) is kinds[0] and (kinds[0] in (bool, int, float) or hint is str)


def _parsed(hint: Any, value: Any) -> Any:
    """Return a value in the type that a hint says, or raise `ArgumentError`."""
    if value is None:
        # The parser would take it for "not given", whatever the type.
        raise ArgumentError(None, "null")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser.parse_object({"value": value}).value


def _is_finite(value: Any) -> bool:
    """Return whether there is neither a NaN, which passes every check of a range, nor an infinity."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _takes_null(hint: Any) -> bool:
    return hint is Any or type(None) in alternatives(hint)


def _quoting(hint: Any, value: Any) -> str:
    """Return how to write a text that YAML has read as something else."""
    if str not in alternatives(hint) or not isinstance(value, int | float):
        return ""
    kind = "true or false" if isinstance(value, bool) else "a number"
    return f"; YAML reads {kind} there: put it in quotes, on the command line in two kinds ('\"...\"')"


def _describe(hint: Any) -> str:
    if len(alternatives(hint)) > 1:
        return " or ".join(_describe(arg) for arg in alternatives(hint))
    if get_origin(hint) is Literal:
        return "value out of " + ", ".join(map(str, _choices(hint)))
    if get_origin(hint) in (list, tuple):
        items = [item for item in get_args(hint) if item is not Ellipsis]
        count = "" if get_origin(hint) is list or Ellipsis in get_args(hint) else f"{len(items)} "
        return f"list of {count}{_describe(items[0])}s"
    if get_origin(hint) is dict or is_dataclass(hint):
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint).replace("typing.", ""))


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for arg in get_args(hint) for choice in _choices(arg)]
