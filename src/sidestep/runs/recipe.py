"""Recipes: YAML -> Recipe, with every error at once and the nearest valid names."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from sidestep.data import DataConfig
from sidestep.errors import RecipeError
from sidestep.methods import METHODS, Method
from sidestep.networks.models import EXIT_NETWORKS, ModelConfig
from sidestep.training.training_config import Phase, TrainingConfig

SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that defines a run.

    Attributes:
        name: how the run is called.
        method: name of the method.
        settings: the method's settings, an instance of its settings class.
        model: the network that is made dynamic.
        data: what it is trained on.
        training: how.
    """

    name: str
    method: str
    settings: Any
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig

    def as_dict(self) -> dict[str, Any]:
        """Return plain values from which `from_dict` makes the same recipe."""
        sections = {name: _plain(asdict(getattr(self, name))) for name in SECTIONS}
        return {
            "name": self.name,
            "method": {"name": self.method} | _plain(asdict(self.settings)),
            **sections,
        }


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with command-line overrides applied.

    Args:
        path: the YAML file.
        overrides: "--method.target=0.4" or "--method.target", "0.4"; lists are indexed by number
            ("--training.phases.0.epochs").

    Raises:
        RecipeError: naming all errors at once.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"recipe {path} must be a readable YAML file; `ls recipes` shows those that exist"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} must be YAML, but it does not parse: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} must be a mapping of name, method, model, data and training")
    values.setdefault("name", path.stem)
    errors: list[str] = []
    for key, value in _pairs(overrides, errors):
        _override(values, key, value, errors)
    return _finish(values, errors, str(path))


def from_dict(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Return the recipe that plain values describe.

    Raises:
        RecipeError: naming all errors at once.
    """
    return _finish(values, [], source)


def method_of(recipe: Recipe) -> Method[Any]:
    """Return the method that a recipe names."""
    return METHODS[recipe.method]


def method_settings(method: str, values: dict[str, Any], source: str) -> Any:
    """Return the settings of a method, an instance of its settings class, that plain values describe.

    Raises:
        RecipeError: naming all errors at once, as errors of `source`.
    """
    errors: list[str] = []
    settings = _settings(method, values, errors)
    _raise_all(errors, source)
    return settings


def settings_by_key(method: str) -> dict[str, str]:
    """Return every key of a recipe of this method with what it takes and its default, for help texts."""
    sections = {"method": METHODS[method].settings, **SECTIONS}
    return {key: text for name, cls in sections.items() for key, text in _keys(cls, name)}


def _keys(cls: type, place: str) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        key, hint = f"{place}.{field.name}", hints[field.name]
        item = get_args(hint)[0] if get_origin(hint) is list else None
        if is_dataclass(hint) or is_dataclass(item):
            yield from _keys(typing.cast(type, item or hint), f"{key}.0" if item else key)
        elif field.default is MISSING:
            yield key, _describe(hint)
        else:
            yield key, f"{_describe(hint)} (default: {field.default})"


def _finish(values: dict[str, Any], errors: list[str], source: str) -> Recipe:
    known = {"name", "method", *SECTIONS}
    if values.get("name", "") is None:
        errors.append("name must be a text, got None")
    errors += [_unknown(key, "", known) for key in values if key not in known]
    method_values = dict(values.get("method") or {}) if isinstance(values.get("method"), dict | None) else {}
    method = method_values.pop("name", None)
    settings = _settings(method, method_values, errors)
    sections = {name: _build(cls, values.get(name) or {}, name, errors) for name, cls in SECTIONS.items()}
    if not errors:
        errors += _skip_errors(str(method), sections["model"])
        errors += _model_errors(str(method), sections["model"], sections["training"])
        errors += _ramp_errors(sections["training"], settings)
        phases = [
            _phase(phase, method_values, type(settings), f"training.phases.{index}.settings", errors)
            for index, phase in enumerate(sections["training"].phases)
        ]
        sections["training"] = replace(sections["training"], phases=phases)
    _raise_all(errors, source)
    return Recipe(name=str(values.get("name", "run")), method=str(method), settings=settings, **sections)


def _settings(method: Any, values: dict[str, Any], errors: list[str]) -> Any:
    """Return the settings of a method, or None after adding to `errors`."""
    if method in METHODS:
        return _build(METHODS[method].settings, values, "method", errors)
    errors.append(
        f"method.name must be one of {', '.join(METHODS)}, got {method!r}{_nearest(method, METHODS)}"
    )
    return None


def _raise_all(errors: list[str], source: str) -> None:
    if errors:
        count = "one error" if len(errors) == 1 else f"{len(errors)} errors"
        raise RecipeError(f"{source} has {count}:\n" + "\n".join(f"  - {error}" for error in errors))


def _build(cls: type, values: Any, place: str, errors: list[str]) -> Any:
    """Return an instance of a config dataclass, or None after adding to `errors`."""
    if not isinstance(values, dict):
        errors.append(f"{place} must be a mapping, got {values!r}")
        return None
    hints = get_type_hints(cls)
    names = {field.name for field in fields(cls)}
    before = len(errors)
    errors += [_unknown(key, place, names) for key in values if key not in names]
    built = {
        name: _value(hints[name], value, f"{place}.{name}", errors)
        for name, value in values.items()
        if name in names
    }
    for field in fields(cls):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            errors.append(
                f"{place}.{field.name} is required, got nothing; set it to a {_describe(hints[field.name])}"
            )
    if len(errors) > before:
        return None
    try:
        return cls(**built)
    except RecipeError as error:
        errors.append(f"{place}.{error}")
        return None


def _value(hint: Any, value: Any, place: str, errors: list[str]) -> Any:
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, place, errors)
    if get_origin(hint) is list and is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        return [
            _value(get_args(hint)[0], item, f"{place}.{index}", errors) for index, item in enumerate(value)
        ]
    if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]) and isinstance(value, dict):
        return {key: _value(get_args(hint)[1], item, f"{place}.{key}", errors) for key, item in value.items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if value is None and not _takes_null(hint):
            # The parser would take it for "not given", whatever the type.
            raise ArgumentError(None, "null")
        parsed = parser.parse_object({"value": value}).value
    except ArgumentError:
        way_out = _nearest(value, _choices(hint)) or _quoting(hint, value)
        errors.append(f"{place} must be a {_describe(hint)}, got {value!r}{way_out}")
        return None
    return tuple(parsed) if get_origin(hint) is tuple else parsed


def _takes_null(hint: Any) -> bool:
    return hint is Any or type(None) in _alternatives(hint)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type is made of, itself alone unless it is a union."""
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _quoting(hint: Any, value: Any) -> str:
    """Return how to write a text that YAML has read as something else."""
    if str not in _alternatives(hint) or not isinstance(value, int | float):
        return ""
    kind = "true or false" if isinstance(value, bool) else "a number"
    return f"; YAML reads {kind} there: put it in quotes, on the command line in two kinds ('\"...\"')"


def _describe(hint: Any) -> str:
    if len(_alternatives(hint)) > 1:
        return " or ".join(_describe(arg) for arg in _alternatives(hint))
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


def _unknown(key: Any, place: str, known: Any) -> str:
    name = f"{place}.{key}" if place else str(key)
    hint = _nearest(key, known) or "; known: " + ", ".join(sorted(known))
    return f"{name} is no setting of {place or 'a recipe'}{hint}"


def _nearest(name: Any, known: Any) -> str:
    matches = difflib.get_close_matches(str(name), [str(choice) for choice in known], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _phase(phase: Phase, values: dict[str, Any], cls: type, place: str, errors: list[str]) -> Phase:
    """Return the phase with its method settings checked and converted."""
    parts = {field.name for field in fields(cls) if is_dataclass(get_type_hints(cls)[field.name])}
    errors += [
        f"{place}.{name} must stay as it is during training, got {value!r}; set it under method"
        for name, value in phase.settings.items()
        if name in parts
    ]
    built = _build(cls, values | phase.settings, place, errors) if phase.settings else None
    if built is None:
        return phase
    return replace(phase, settings={name: getattr(built, name) for name in phase.settings})


def _skip_errors(method: str, model: ModelConfig) -> list[str]:
    if METHODS[method].skips_openers or model.skip == "relu":
        return []
    return [
        f"model.skip has no effect under {method}, which executes every block that changes the shape, got "
        f"{model.skip!r}; drop it"
    ]


def _model_errors(method: str, model: ModelConfig, training: TrainingConfig) -> list[str]:
    """Return what is wrong between a network of exits alone and methods and phases for units."""
    wanted = METHODS[method].model
    if wanted is not None and model.name != wanted:
        return [f"model.name must be {wanted} for method {method}, got {model.name!r}"]
    if wanted is None and model.name in EXIT_NETWORKS:
        return [f"method.name must be {model.name} for model {model.name}, got {method!r}"]
    return [
        f"training.phases.{index}.paths must be routed for {model.name}, which has no units to choose, got "
        f"{phase.paths!r}; drop it"
        for index, phase in enumerate(training.phases)
        if wanted is not None and phase.paths != "routed"
    ]


def _ramp_errors(training: TrainingConfig, settings: Any) -> list[str]:
    hints = get_type_hints(type(settings))
    numbers = {name for name, hint in hints.items() if hint is float or float in get_args(hint)}
    return [
        _unknown(name, f"training.phases.{index}.ramps", numbers)
        for index, phase in enumerate(training.phases)
        for name in phase.ramps
        if name not in numbers
    ]


def _pairs(overrides: Sequence[str], errors: list[str]) -> list[tuple[str, Any]]:
    """Return (key, value) for "--key=value" and "--key", "value"."""
    pairs, rest = [], list(overrides)
    while rest:
        item = rest.pop(0)
        key, equals, value = item.partition("=")
        if not key.startswith("--") or (not equals and not rest):
            errors.append(
                f"{item!r} must be --key value; keys are those of the recipe, such as --method.target 0.4"
            )
            continue
        pairs.append((key.removeprefix("--"), yaml.safe_load(value if equals else rest.pop(0))))
    return pairs


def _override(values: dict[str, Any], key: str, value: Any, errors: list[str]) -> None:
    target: Any = values
    *path, last = key.split(".")
    try:
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[int(last) if isinstance(target, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        errors.append(
            f"--{key} names no place in the recipe; lists are counted from 0 (--training.phases.0.epochs)"
        )


def _plain(value: Any) -> Any:
    """Return the value with tuples as lists, as YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
