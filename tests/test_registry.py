"""Registries: names that stand for families, names that are taken or unknown, settings of items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sidestep.errors import RecipeError
from sidestep.registry import Registry, did_you_mean, own_settings


@dataclass(frozen=True)
class Plain:
    size: int = 1


@dataclass(frozen=True)
class Required:
    root: str


@dataclass(frozen=True)
class Item:
    name: str
    settings: type = Plain


def registry(*names: str) -> Registry[Item]:
    return Registry("thing", [Item(name) for name in names])


def test_a_name_in_angle_brackets_stands_for_all_that_begin_like_it() -> None:
    things = registry("<anything>", "a/<name>", "a/b/<name>", "a/b/c")
    found = {name: things[name].name for name in ("a/b/c", "a/b/d", "a/c", "a/", "b", "")}
    assert found == {
        "a/b/c": "a/b/c",
        "a/b/d": "a/b/<name>",
        "a/c": "a/<name>",
        "a/": "a/<name>",
        "b": "<anything>",
        "": "<anything>",
    }


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    things = registry("resnet50", "timm/<name>")
    with pytest.raises(RecipeError) as caught:
        things["resnet5O"]
    assert str(caught.value) == (
        "name must be one of resnet50, timm/<name>, got 'resnet5O'; did you mean resnet50?"
    )
    assert "resnet5O" not in things and "timm/x" in things


@pytest.mark.parametrize("name", [None, 5, ["resnet50"]])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    things = registry("<anything>")
    assert name not in things
    with pytest.raises(RecipeError, match="name must be one of <anything>, got "):
        things[name]


def test_items_stay_in_order_and_are_added_and_removed() -> None:
    things = registry("b", "a")
    things.add(Item("c"))
    assert (list(things), len(things), [name for name, _ in things.items()]) == (
        ["b", "a", "c"],
        3,
        list("bac"),
    )
    with pytest.raises(RecipeError, match="thing c is there already; choose another name"):
        things.add(Item("c"))
    things.remove("c")
    assert list(things) == ["b", "a"]
    with pytest.raises(RecipeError, match="name must be one of b, a, got 'c'"):
        things.remove("c")


def test_nothing_near_is_no_hint() -> None:
    assert did_you_mean("zebra", ["resnet50"]) == ""


def test_settings_are_given_or_defaults() -> None:
    item = Item("a")
    assert own_settings(item, "a", None) == Plain()
    assert own_settings(item, "a", Plain(3)) == Plain(3)
    with pytest.raises(RecipeError, match=r"settings of a must be Plain, got Required\(root='x'\)"):
        own_settings(item, "a", Required("x"))
    with pytest.raises(RecipeError, match="root must be set for b, got nothing; it has no default"):
        own_settings(Item("b", Required), "b", None)
