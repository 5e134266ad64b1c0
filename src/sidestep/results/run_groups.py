"""Runs that differ in nothing but their seed, as one: means and deviations, and a name of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from sidestep.results.recipe_tables import departures, shared_settings, without_labels
from sidestep.results.run_result import RunResult

# The settings that say what a network may cost, and what more is allowed.
_BUDGET, _ALLOWED = ".target", "training.max_fraction"
# Words of run folders that say that a number behind them is a seed.
_SEED_WORDS = ("seed", "seeds", "s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: of the run's folder, or the words that the folders share.
        results: at least one.
    """

    name: str
    results: tuple[RunResult, ...]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds, in order."""
        return sorted(_seed(result) for result in self.results)

    @property
    def gflops(self) -> tuple[float, float]:
        """Return mean and deviation of the cost of the best checkpoints."""
        return mean_and_deviation([result.gflops for result in self.results])

    @property
    def percent(self) -> tuple[float, float]:
        """Return mean and deviation of their accuracy in percent."""
        return mean_and_deviation([result.percent for result in self.results])

    def percent_of(self, seed: int) -> float:
        """Return the accuracy in percent of the run with a seed that is there."""
        return next(result.percent for result in self.results if _seed(result) == seed)


def run_groups(results: Sequence[RunResult]) -> list[RunGroup]:
    """Return runs in groups of equal recipes but for name and seed, in the order of their first runs.

    A run that is there twice with one seed (on two machines, for example) is in two groups: that both agree
    says nothing about seeds. Names are unique.

    Args:
        results: of runs.
    """
    groups: dict[tuple[str, int], list[RunResult]] = {}
    for result in results:
        recipe = json.dumps(_without_seed(result), sort_keys=True, default=str)
        place = 0
        while any(_seed(other) == _seed(result) for other in groups.get((recipe, place), ())):
            place += 1
        groups.setdefault((recipe, place), []).append(result)
    names = _unique([_name([run.folder for run in runs]) for runs in groups.values()])
    return [
        RunGroup(name=name, results=tuple(runs)) for name, runs in zip(names, groups.values(), strict=True)
    ]


def lines_of(groups: Sequence[RunGroup]) -> list[tuple[str, list[RunGroup]]]:
    """Return groups that a line may join, with its name, and every other group alone.

    A line joins groups of one recipe that differ in a single setting which is a number, as those of a sweep:
    it shows what that setting does. Of a sweep over several settings every line has its own values of the
    others. Whatever else differs, nothing lies between two runs.

    Args:
        groups: in the order of the legend.
    """
    families: dict[str, list[RunGroup]] = {}
    for group in groups:
        families.setdefault(group.results[0].recipe_name, []).append(group)
    places = {id(group): place for place, group in enumerate(groups)}
    lines = [line for family in families.values() for line in _parted(family)]
    lines.sort(key=lambda line: places[id(line[0])])
    names = _unique([_line_name(line) for line in lines])
    return list(zip(names, lines, strict=True))


def _parted(family: Sequence[RunGroup]) -> list[list[RunGroup]]:
    """Return groups of one recipe as lines; a budget moves along them before any other setting does."""
    if dial_of(family) is not None:
        return [list(family)]
    best = [[group] for group in family]
    _, differing = _differing(family)
    names = {name for settings in differing for name in settings}
    for name in sorted(names, key=lambda name: (not name.endswith(_BUDGET), name)):
        parts: dict[str, list[RunGroup]] = {}
        for group, settings in zip(family, differing, strict=True):
            others = {key: value for key, value in settings.items() if key != name}
            parts.setdefault(json.dumps(others, sort_keys=True), []).append(group)
        lines = [
            line
            for part in parts.values()
            for line in ([part] if dial_of(part) == name else [[group] for group in part])
        ]
        if len(lines) < len(best):
            best = lines
            if name.endswith(_BUDGET):
                break
    return best


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the deviation of a sample (over n - 1), which is 0 of one value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def with_deviation(values: Sequence[float], digits: int) -> str:
    """Return mean and deviation as text, such as `93.10 ± 0.12`; of one value the value.

    >>> with_deviation([93.0, 93.2], 2), with_deviation([93.0], 1)
    ('93.10 ± 0.14', '93.0')
    """
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def _seed(result: RunResult) -> int:
    return int(result.recipe["training"]["seed"])


def _without_seed(result: RunResult) -> dict[str, Any]:
    recipe = without_labels(result.recipe)
    return recipe | {"training": {key: value for key, value in recipe["training"].items() if key != "seed"}}


def dial_of(family: Sequence[RunGroup], *, words: bool = False) -> str | None:
    """Return the one setting in which groups differ if all of them have a number there.

    Args:
        family: groups of one recipe.
        words: whether some may have a word instead, such as `auto`.
    """
    recipes, differing = _differing(family)
    names = {name for settings in differing for name in settings}
    if len(family) < 2 or len(names) != 1:
        return None
    (name,) = names
    values = [setting_of(recipe, name) for recipe in recipes]
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in values]
    texts = [words and isinstance(value, str) for value in values]
    return name if any(numbers) and all(map(any, zip(numbers, texts, strict=True))) else None


def _differing(family: Sequence[RunGroup]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the recipes of groups without seeds, and by dotted name what each has that most have not.

    What a recipe allows above its budget moves with that in a sweep, and is no setting of its own then.
    """
    recipes = [_without_seed(group.results[0]) for group in family]
    common = shared_settings(recipes)
    # The settings that most have are where all of them are looked up.
    differing = [departures(recipe, common) for recipe in recipes]
    for settings in differing:
        if len(settings) > 1:
            settings.pop(_ALLOWED, None)
    return recipes, differing


def setting_of(recipe: dict[str, Any], name: str) -> Any:
    """Return a setting by its name with dots, or None where a recipe has none."""
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _line_name(line: Sequence[RunGroup]) -> str:
    if len(line) == 1:
        return line[0].name
    name, dial = _name([group.name for group in line]), dial_of(line)
    recipes = [_without_seed(group.results[0]) for group in line]
    values = sorted(setting_of(recipe, str(dial)) for recipe in recipes)
    return f"{name}, {str(dial).rpartition('.')[2]} {', '.join(f'{value:g}' for value in values)}"


def _name(folders: Sequence[str]) -> str:
    """Return the words that names of folders share, without a last one that speaks of seeds.

    >>> _name(["net_0.4_seed0", "net_0.4_seed1"]), _name(["net_s_1", "net_s_2"]), _name(["a", "b"])
    ('net_0.4', 'net', 'a … b')
    """
    if len(folders) == 1:
        return folders[0]
    split = [re.split(r"[_\-]+", folder) for folder in folders]
    shared = [word for word in split[0] if all(word in words for words in split)]
    while shared and shared[-1] in _SEED_WORDS:
        shared.pop()
    return "_".join(shared) or f"{folders[0]} … {folders[-1]}"


def _unique(names: Sequence[str]) -> list[str]:
    """Return names with a number behind those that are there already."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found.append(unique)
    return found
