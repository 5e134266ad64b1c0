"""Registries: how methods, models, sources of data, exit criteria and export targets are found by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from typing import Any, Generic, Protocol, TypeVar

from sidestep.errors import RecipeError


class Named(Protocol):
    """What a registry holds.

    Attributes:
        name: as recipes and commands say it. One that ends in a part in angle brackets, "timm/<name>", stands
            for all names that begin like it.
    """

    @property
    def name(self) -> str: ...


class Configurable(Named, Protocol):
    """An item with settings of its own.

    Attributes:
        settings: dataclass of them.
    """

    @property
    def settings(self) -> type: ...


Item = TypeVar("Item", bound=Named)


class Registry(Generic[Item]):
    """Items by name, in the order in which they were added.

    Args:
        kind: what errors call an item.
        key: what errors call the setting that names one, such as "name" or "source".
        items: that are there from the beginning.
    """

    def __init__(self, kind: str, items: Iterable[Item] = (), *, key: str = "name") -> None:
        self.kind = kind
        self.key = key
        self._items: dict[str, Item] = {}
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        """Let recipes and commands name an item.

        Raises:
            RecipeError: when the name is taken.
        """
        if item.name in self._items:
            raise RecipeError(f"{self.kind} {item.name} is there already; choose another name")
        self._items[item.name] = item

    def remove(self, name: str) -> None:
        """Forget an item that was added, for a notebook that defines it anew.

        Raises:
            RecipeError: when there is none of that name.
        """
        if self._items.pop(name, None) is None:
            raise self.unknown(name)

    def __getitem__(self, name: str) -> Item:
        """Return the item that a name stands for: the one of that name, or that with the longest beginning.

        Raises:
            RecipeError: when there is none, with the nearest name that exists.
        """
        if (item := self._find(name)) is None:
            raise self.unknown(name)
        return item

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[tuple[str, Item]]:
        """Return all names with their items."""
        return list(self._items.items())

    def unknown(self, name: object) -> RecipeError:
        """Return the error of a name that is no item's."""
        return RecipeError(
            f"{self.key} must be one of {', '.join(self)}, got {name!r}"
            + (did_you_mean(name, self) or "; `--import MODULE` adds those of your own")
        )

    def _find(self, name: object) -> Item | None:
        if not isinstance(name, str):
            return None
        if name in self._items:
            return self._items[name]
        fitting = [known for known in self if known.endswith(">") and name.startswith(_beginning(known))]
        return self._items[max(fitting, key=lambda known: len(_beginning(known)))] if fitting else None


def _beginning(name: str) -> str:
    return name.partition("<")[0]


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, or nothing if none is near."""
    matches = difflib.get_close_matches(str(name), [str(choice) for choice in known], n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def own_settings(item: Configurable, name: str, given: Any) -> Any:
    """Return the settings of an item: those that were given, or the defaults in place of None.

    Raises:
        RecipeError: for settings of another item, or where there are no defaults.
    """
    if given is not None:
        if isinstance(given, item.settings):
            return given
        raise RecipeError(f"settings of {name} must be {item.settings.__name__}, got {given!r}")
    for field in fields(item.settings):
        if field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{field.name} must be set for {name}, got nothing; it has no default")
    return item.settings()
