"""Recipes: YAML -> Recipe, with every error at once and the nearest valid names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from sidestep.data.data_config import DataConfig
from sidestep.errors import RecipeError, one_line
from sidestep.methods import METHODS, Method
from sidestep.networks.models import MODELS, Model, ModelConfig
from sidestep.runs import schema
from sidestep.runs.cascade_model import register_cascades
from sidestep.runs.override import NotReadableError, OverrideText, read_text
from sidestep.runs.recipe_book import recipe_file
from sidestep.runs.sections import DATA, METHOD, MODEL
from sidestep.runs.upgrade import VERSION, upgrade_recipe
from sidestep.training.step import settings_at
from sidestep.training.training_config import Phase, TrainingConfig

register_cascades()
SECTIONS = ("method", "model", "data", "training")


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
        return {
            "version": VERSION,
            "name": self.name,
            "method": {"name": self.method} | schema.as_plain(self.settings),
            "model": MODEL.plain(self.model),
            "data": DATA.plain(self.data),
            "training": schema.as_plain(self.training),
        }


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with command-line overrides applied.

    Args:
        path: the YAML file, or the name of a recipe that comes with sidestep.
        overrides: "--method.target=0.4" or "--method.target", "0.4"; lists are indexed by number
            ("--training.phases.0.epochs").

    Raises:
        RecipeError: naming all errors at once.
    """
    return overridden(recipe_values(path), overrides, str(recipe_file(path)))


def recipe_values(path: Path | str) -> dict[str, Any]:
    """Return the plain values in a YAML file, with today's keys; what it leaves out is not there.

    Args:
        path: as `load_recipe` takes it.

    Raises:
        RecipeError: for a file that cannot be read, or is no mapping.
    """
    path = recipe_file(path)
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"recipe {path} must be a file that can be read, and it cannot ({error.strerror or error}); "
            "`sidestep recipes` lists those that come with sidestep"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} must be YAML, and is not: {one_line(error)}; mend it") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"recipe {path} must be a mapping of name, method, model, data and training, got "
            f"{type(values).__name__}; `sidestep recipes` lists examples"
        )
    values = upgrade_recipe(values)
    values.setdefault("name", path.stem)
    return values


def overridden(values: dict[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    """Return the recipe that plain values of today describe, with command-line overrides applied.

    Args:
        values: are changed.
        overrides: as `load_recipe` takes them.
        source: what errors call the values.

    Raises:
        RecipeError: naming all errors at once.
    """
    errors: list[str] = []
    pairs = _pairs(overrides, errors)
    for key, value in pairs:
        _override(values, key, value, errors)
    return _finish(values, errors, source, [key for key, _ in pairs])


def data_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a recipe's `data:` that were typed on the command line, as plain values.

    Args:
        overrides: as `load_recipe` takes them.

    Raises:
        RecipeError: for keys of other parts.
    """
    errors: list[str] = []
    values: dict[str, Any] = {}
    for key, value in _pairs(overrides, errors):
        part, _, name = key.partition(".")
        if part != "data" or not name or "." in name:
            errors.append(f"--{key} must be a key of data, such as --data.source")
        values[name] = value
    if not errors and "source" not in values:
        errors.append("data.source must be named, got nothing; for example --data.source FOLDER")
    _raise_all(errors, "the command line")
    return values


def from_dict(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Return the recipe that plain values describe, those of older checkpoints too.

    Raises:
        RecipeError: naming all errors at once.
    """
    return _finish(upgrade_recipe(values), [], source)


def method_of(recipe: Recipe) -> Method[Any]:
    """Return the method that a recipe names."""
    return METHODS[recipe.method]


def model_of(recipe: Recipe) -> Model[Any, Any]:
    """Return the model that a recipe names."""
    return MODELS[recipe.model.name]


def method_settings(method: str, values: dict[str, Any], source: str) -> Any:
    """Return the settings of a method, an instance of its settings class, that plain values describe.

    Raises:
        RecipeError: naming all errors at once, as errors of `source`.
    """
    errors: list[str] = []
    settings = METHOD.build({**values, "name": method}, "method", errors)
    _raise_all(errors, source)
    return settings


def _finish(values: dict[str, Any], errors: list[str], source: str, overridden: Sequence[str] = ()) -> Recipe:
    known = {"version", "name", *SECTIONS}
    if values.get("version", VERSION) != VERSION:
        errors.append(f"version must be {VERSION}, got {values['version']!r}; use the release that wrote it")
    if values.get("name", "") is None:
        errors.append("name must be a text, got None")
    errors += [schema.unknown(key, "", "a recipe", known) for key in values if key not in known]
    method, model, data, training = (schema.as_mapping(values.get(section) or {}) for section in SECTIONS)
    settings = METHOD.build(method, "method", errors)
    parts = {
        "model": MODEL.build(model, "model", errors),
        "data": DATA.build(data, "data", errors),
        "training": schema.build(TrainingConfig, training, "training", errors),
    }
    if not errors:
        name = METHOD.name_in(method)
        errors += _no_effect_errors(METHODS[name], parts["model"])
        errors += _model_errors(METHODS[name], parts["model"], parts["training"])
        errors += _ramp_errors(parts["training"], settings)
        errors += _mixing_errors(METHODS[name], parts["data"])
        phases = [
            _phase(phase, method, type(settings), f"training.phases.{index}.settings", errors)
            for index, phase in enumerate(parts["training"].phases)
        ]
        errors += [] if errors else _moved_errors(phases, settings)
        parts["training"] = replace(parts["training"], phases=phases)
    _raise_all(errors, source, overridden)
    return Recipe(
        name=str(values.get("name", "run")), method=str(METHOD.name_in(method)), settings=settings, **parts
    )


def _raise_all(errors: list[str], source: str, overridden: Sequence[str] = ()) -> None:
    """Raise what is wrong with a source; what the command line has set is said to be there."""
    beginnings = tuple(f"{dashes}{key}{end}" for key in overridden for end in " ." for dashes in ("", "--"))
    typed = [error.startswith((*beginnings, "'")) for error in errors]
    if overridden and any(typed):
        source = "the command line" if all(typed) else f"{source} with the settings of the command line"
    if errors:
        count = "one error" if len(errors) == 1 else f"{len(errors)} errors"
        raise RecipeError(f"{source} has {count}:\n" + "\n".join(f"  - {error}" for error in errors))


def _phase(phase: Phase, method: Mapping[str, Any], cls: type, place: str, errors: list[str]) -> Phase:
    """Return the phase with its method settings checked and converted."""
    hints = get_type_hints(cls)
    groups = {field.name: hints[field.name] for field in fields(cls) if is_dataclass(hints[field.name])}
    parts = [name for name, group in groups.items() if not _moves(group)]
    errors += [
        f"{place}.{name} must stay as it is during training, got {value!r}; set it under method"
        for name, value in phase.settings.items()
        if name in parts
    ]
    values = {key: value for key, value in method.items() if key != "name"}
    for name, value in phase.settings.items():
        whole = name in groups and isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | value if whole else value
    built = schema.build(cls, values, place, errors) if phase.settings else None
    if built is None:
        return phase
    return replace(phase, settings={name: getattr(built, name) for name in phase.settings})


def _no_effect_errors(method: Method[Any], model: ModelConfig) -> list[str]:
    """Return errors of settings of the model that the method has no use for."""
    defaults = {item.name: item.default for item in fields(model.settings) if item.default is not MISSING}
    given = {key: getattr(model.settings, key) for key in method.no_effect if key in defaults}
    return [
        f"model.{key} has no effect under {method.name}, {method.no_effect[key]}, got {value!r}; drop it"
        for key, value in given.items()
        if value != defaults[key]
    ]


def _model_errors(method: Method[Any], model: ModelConfig, training: TrainingConfig) -> list[str]:
    """Return what is wrong between a network that decides by itself and methods and phases for units."""
    wanted, dynamic = method.model, MODELS[model.name].dynamic
    if wanted is not None and model.name != wanted:
        return [f"model.name must be {wanted} for method {method.name}, got {model.name!r}"]
    if wanted is None and dynamic:
        return [f"method.name must be {model.name} for model {model.name}, got {method.name!r}"]
    return [
        f"training.phases.{index}.paths must be routed for {model.name}, which has no units to choose, got "
        f"{phase.paths!r}; drop it"
        for index, phase in enumerate(training.phases)
        if dynamic and phase.paths != "routed"
    ]


def _mixing_errors(method: Method[Any], data: DataConfig) -> list[str]:
    """Return what is wrong between mixed images and a method whose reward is to be right or wrong."""
    if not (data.augment.mixes and method.wants_greedy):
        return []
    return [
        f"data.augment.mixup and cutmix must be 0 under {method.name}, which rewards one right class per "
        f"image, got {data.augment.mixup} and {data.augment.cutmix}; drop them"
    ]


def _ramp_errors(training: TrainingConfig, settings: Any) -> list[str]:
    hints = get_type_hints(type(settings))
    numbers = set(_numbers(type(settings)))
    for name, group in hints.items():
        if _moves(group):
            numbers |= {f"{name}.{inner}" for inner in _numbers(group)}
    return [
        schema.unknown(name, f"training.phases.{index}.ramps", "numbers of the method", numbers)
        for index, phase in enumerate(training.phases)
        for name in phase.ramps
        if name not in numbers
    ]


def _numbers(cls: Any) -> list[str]:
    """Return the settings that are numbers."""
    hints, names = get_type_hints(cls), [field.name for field in fields(cls)]
    return [name for name in names if hints[name] is float or float in get_args(hints[name])]


def _moves(group: Any) -> bool:
    """Return whether settings inside of a method's may change in a phase: no part is built from them."""
    return is_dataclass(group) and bool(getattr(group, "moves", False))


def _moved_errors(phases: Sequence[Phase], settings: Any) -> list[str]:
    """Return what is wrong with settings where ramps begin and end, at which training would stop."""
    errors = []
    for index, phase in enumerate(phases):
        try:
            for progress in (0.0, 1.0) if phase.ramps else ():
                settings_at(settings, phase, progress)
        except RecipeError as error:
            errors.append(f"training.phases.{index}.ramps take the method where {error}")
    return errors


def _pairs(overrides: Sequence[str], errors: list[str]) -> list[tuple[str, OverrideText]]:
    """Return (key, value) for "--key=value" and "--key", "value"."""
    pairs: list[tuple[str, OverrideText]] = []
    rest = list(overrides)
    while rest:
        item = rest.pop(0)
        key, equals, value = item.partition("=")
        if not key.startswith("--") or (not equals and not rest):
            errors.append(
                f"{item!r} must be --key value; keys are those of the recipe, such as --method.target 0.4"
            )
            continue
        pairs.append((key.removeprefix("--"), OverrideText(value if equals else rest.pop(0))))
    return pairs


def _override(values: dict[str, Any], key: str, value: Any, errors: list[str]) -> None:
    target: Any = values
    *path, last = key.split(".")
    try:
        for part in path:
            place: Any = _index(part) if isinstance(target, list) else part
            below = target[place] if isinstance(target, list) else target.setdefault(part, {})
            if isinstance(below, OverrideText):
                # A group that an override before this one has named whole.
                below = target[place] = read_text(dict, below)
            target = below
        target[_index(last) if isinstance(target, list) else last] = value
    except (AttributeError, IndexError, NotReadableError, TypeError, ValueError):
        errors.append(
            f"--{key} names no place in the recipe; lists are counted from 0 (--training.phases.0.epochs)"
        )


def _index(text: str) -> int:
    """Return the place in a list; negative ones would count from its end, silently."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)
