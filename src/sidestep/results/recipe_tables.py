"""How the runs of a page were made: what most recipes share is said once, then what each has instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from sidestep.evaluation.environment import in_words
from sidestep.results.markdown import table
from sidestep.results.run_result import RunResult

Settings = dict[str, Any]

_YAML_WIDTH = 110

_WHAT = """Settings that more than half of the runs have, phases by name. The table below says where a run has
others, and which of these it has not."""


def recipe_sections(results: Sequence[RunResult]) -> list[str]:
    """Return the lines that say on what machine and with which settings the runs of a page were made.

    Where methods differ, their settings stand apart, by method. What is long is folded.

    Args:
        results: of the page, in the order of its rows.
    """
    recipes = [_with_names(result.recipe) for result in results]
    methods = dict.fromkeys(result.method for result in results)
    apart = ["method"] if len(methods) > 1 else []
    common = shared_settings([_without(recipe, [*apart, "name"]) for recipe in recipes])
    lines = ["", "## How they were made", "", *_environments(results)]
    lines += [
        "",
        "### Settings",
        "",
        *_WHAT.splitlines(),
        "",
        *_folded("Of all methods" if apart else "All", common),
    ]
    known, of_methods = {}, {}
    for method in methods:
        own = shared_settings(
            [{key: run.recipe[key] for key in apart} for run in results if run.method == method]
        )
        known[method] = common | own
        if settings := _without(own.get("method", {}), ["name"]):
            of_methods[method] = settings
    if of_methods:
        lines += ["", "### Settings of methods", "", *_folded("Of all their runs", of_methods)]
    differing = [
        departures(_without(recipe, ["name"]), known[result.method])
        for result, recipe in zip(results, recipes, strict=True)
    ]
    return [*lines, "", "### Runs", "", *_differences(results, differing)]


def without_labels(recipe: Settings) -> Settings:
    """Return a recipe without its name, phases by name: what decides what is trained."""
    return _without(_with_names(recipe), ["name"])


def shared_settings(recipes: Sequence[Settings]) -> Settings:
    """Return the settings whose values more than half of the recipes have.

    >>> shared_settings([{"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}])
    {'a': 1, 'b': {'c': 2}}

    Args:
        recipes: nested plain values.
    """
    return _shared(recipes, len(recipes))


def departures(recipe: Settings, common: Settings) -> dict[str, str]:
    """Return by dotted name which other settings a recipe has than the common ones, and which it has not.

    >>> departures({"a": 1, "b": {"c": 3}}, {"a": 1, "b": {"c": 2}, "d": 4})
    {'b.c': '3', 'd': 'absent'}
    """
    return dict(_departures(recipe, common, ""))


def _shared(recipes: Sequence[Settings], total: int) -> Settings:
    found: Settings = {}
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe[key] for recipe in recipes if key in recipe]
        usual = [value for value in values if 2 * values.count(value) > total]
        groups = [value for value in values if isinstance(value, dict)]
        if usual and not (isinstance(usual[0], dict) and usual[0]):
            found[key] = usual[0]
        elif inner := _shared(groups, total):
            found[key] = inner
    return found


def _departures(recipe: Settings, common: Settings, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in recipe.items():
        shared = common.get(key)
        if isinstance(value, dict) and isinstance(shared, dict) and value and shared:
            yield from _departures(value, shared, f"{prefix}{key}.")
        elif key not in common or value != shared:
            yield f"{prefix}{key}", _flow(value)
    for key in common:
        if key not in recipe:
            yield f"{prefix}{key}", "absent"


def _with_names(value: Any) -> Any:
    """Return settings in which lists of named groups (phases) are groups by name."""
    if isinstance(value, Mapping):
        return {key: _with_names(inner) for key, inner in value.items()}
    if not isinstance(value, list) or not all(isinstance(item, dict) and "name" in item for item in value):
        return value
    groups = {item["name"]: _with_names(_without(item, ["name"])) for item in value}
    return groups if groups and len(groups) == len(value) else value


def _without(settings: Settings, keys: Sequence[str]) -> Settings:
    return {key: value for key, value in settings.items() if key not in keys}


def _environments(results: Sequence[RunResult]) -> list[str]:
    runs: dict[str, list[str]] = {}
    for result in results:
        environment = result.environment
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        runs.setdefault(f"{in_words(environment['hardware'])}, {versions}", []).append(result.folder)
    if len(runs) == 1:
        return [f"On {words}." for words in runs]
    return [f"- {', '.join(names)}: {words}." for words, names in runs.items()]


def _differences(results: Sequence[RunResult], differing: Sequence[dict[str, str]]) -> list[str]:
    """Return a table with a column for every setting in which most runs differ, and one for the rest."""
    names = sorted({name for settings in differing for name in settings})
    columns = [name for name in names if 2 * sum(name in one for one in differing) > len(differing)]
    rows = []
    for result, settings in zip(results, differing, strict=True):
        cells = [settings.get(name, "") for name in columns]
        others = [f"{name} {settings[name]}" for name in names if name in settings and name not in columns]
        commit = str(result.environment["commit"])
        rows.append([result.folder, result.recipe_name, commit, *cells, "; ".join(others)])
    heads = ["run", "recipe", "commit", *columns, "other settings"]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return table(heads, rows)


def _folded(summary: str, settings: Settings) -> list[str]:
    """Return settings that a reader unfolds: a group begins a line, which breaks where it is long."""
    lines = [line for key, value in settings.items() for line in _group(key, value)]
    return [f"<details><summary>{summary}</summary>", "", "```yaml", *lines, "```", "", "</details>"]


def _group(key: str, value: Any) -> list[str]:
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=_YAML_WIDTH)
    first, *others = text.removesuffix("...\n").strip().splitlines()
    return [f"{key}: {first}", *(f"  {line}" for line in others)]


def _flow(value: Any) -> str:
    """Return a value on one line that a cell of a table can hold."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
