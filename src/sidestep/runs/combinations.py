"""What a sweep trains: every combination of recipes and settings, checked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidestep.errors import RecipeError
from sidestep.runs.override import OverrideText, split_texts
from sidestep.runs.recipe import Recipe, load_recipe, method_of

_SHORT_KEYS = {"seed": "training.seed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One combination of a sweep.

    Attributes:
        name: of its run folder.
        recipe: with its settings.
        settings: what the sweep varies, by key, as it was typed.
    """

    name: str
    recipe: Recipe
    settings: dict[str, str]


def sweep_runs(
    recipes: Sequence[Path | str], over: Sequence[str], overrides: Sequence[str] = ()
) -> list[SweepRun]:
    """Return every combination of recipes and settings, checked.

    Args:
        recipes: YAML files; several compare methods.
        over: "key=value,value", with keys of recipes, "seed" for training.seed, or "budget" for the setting
            that says how much a method may execute. The recipe's allowance above its budget
            (training.max_fraction) moves with it.
        overrides: of all recipes, as `load_recipe` takes them.

    Raises:
        RecipeError: when a combination is no recipe, or two have the same name.
    """
    axes = [_axis(text) for text in over]
    _check_axes(axes)
    runs = [
        _combination(Path(recipe), dict(settings), overrides)
        for recipe in recipes
        for settings in itertools.product(*([(key, value) for value in values] for key, values in axes))
    ]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(
                f"runs of a sweep must have different names, got {name!r} {names.count(name)} times; "
                "give each value once, and recipes of one name each a sweep of its own"
            )
    return runs


def _axis(text: str) -> tuple[str, list[OverrideText]]:
    key, equals, values = text.partition("=")
    found = split_texts(values)
    if not key or not equals or not all(found):
        raise RecipeError(f"over must be key=value,value, got {text!r}; for example --over seed=0,1,2")
    return key, found


def _check_axes(axes: Sequence[tuple[str, Any]]) -> None:
    """Refuse a setting that is named twice, under one name or under two: the later one would win."""
    keys = [_SHORT_KEYS.get(key, key) for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(
                f"over must name every setting once, got {key} {keys.count(key)} times; give all values "
                "at once"
            )


def _combination(path: Path, settings: dict[str, OverrideText], overrides: Sequence[str]) -> SweepRun:
    recipe = load_recipe(path, overrides)
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        changes |= _budget(recipe, value) if key == "budget" else {_SHORT_KEYS.get(key, key): value}
    changed = load_recipe(path, [*overrides, *(f"--{key}={value}" for key, value in changes.items())])
    parts = [recipe.name, *(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in settings.items())]
    return SweepRun(
        name="-".join(parts),
        recipe=changed,
        settings={key: str(value) for key, value in settings.items()},
    )


def _budget(recipe: Recipe, budget: str) -> dict[str, Any]:
    """Return what a budget changes in a recipe."""
    name = method_of(recipe).budget(recipe.settings)
    if name is None:
        raise RecipeError(
            f"budget must be one setting of the method, and {recipe.method} has none in recipe "
            f"{recipe.name!r}, got {budget!r}; sweep over the settings that decide the cost"
        )
    changes: dict[str, Any] = {f"method.{name}": budget}
    allowed = recipe.training.max_fraction
    if allowed is not None:
        with suppress(ValueError):  # which the setting itself refuses
            changes["training.max_fraction"] = round(
                float(budget) + allowed - getattr(recipe.settings, name), 6
            )
    return changes


def _text(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")
