"""Settings inside of settings: what is not said stays as the settings around them have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

import sidestep
from sidestep.cli.main import main
from sidestep.data import DataConfig
from sidestep.data.sources import SOURCES
from sidestep.methods import METHODS
from sidestep.networks.models import MODELS, ModelConfig
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.runs import schema
from sidestep.runs.recipe import from_dict, load_recipe
from sidestep.training.training_config import TrainingConfig

PIXELS = {"size": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
MEMBERS = [{"name": name, "model": {"name": "cifar_resnet8"}, "input": PIXELS} for name in "ab"]
# What settings classes without defaults need.
NEEDED: dict[str, dict[str, Any]] = {
    "method codinet": {"num_units": 2.0},
    "method fixed_path": {"path": "101"},
    "model cascade": {"members": MEMBERS},
    "source torch/<cifar10 or cifar100>": {"root": "images"},
    "training": {"phases": [{"name": "joint", "epochs": 1}]},
}
GROUPS = {"method": METHODS, "model": MODELS, "source": SOURCES}
# Every settings class that recipes can name, as they are when a recipe names nothing more.
CLASSES: dict[str, type] = {
    f"{group} {name}": item.settings for group, registry in GROUPS.items() for name, item in registry.items()
} | {"training": TrainingConfig, "model": ModelConfig, "data": DataConfig}
CODINETS_GATE = GateConfig(hidden=None, batch_norm=False, activation=True, bias=None)


def nested(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings inside of settings, by name, those of a recipe's section of its own aside."""
    for each in fields(settings):
        if each.name != "settings" and is_dataclass(inside := getattr(settings, each.name)):
            yield each.name, inside


def built(owner: str, **values: Any) -> Any:
    """Return the settings of an owner that say no more than these values."""
    errors: list[str] = []
    found = schema.build(CLASSES[owner], NEEDED.get(owner, {}) | values, "here", errors)
    assert not errors
    return found


@pytest.mark.parametrize("owner", CLASSES)
def test_one_setting_leaves_the_others_as_their_owner_has_them(owner: str) -> None:
    for name, inside in nested(built(owner)):
        assert getattr(built(owner, **{name: {}}), name) == inside
        for each in fields(inside):
            value = schema.as_plain(getattr(inside, each.name))
            assert getattr(built(owner, **{name: {each.name: value}}), name) == inside, each.name


def test_there_are_settings_inside_of_settings() -> None:
    found = {f"{owner}.{name}" for owner in CLASSES for name, _ in nested(built(owner))}
    assert {"method codinet.gate", "method convnet_aig.gate", "method rdi_net.router"} <= found
    assert {"method rdi_net.srm", "model.exits", "training.optimizer", "training.exits"} <= found


def test_what_is_said_is_said_and_nothing_else_changes() -> None:
    assert built("method codinet").gate == CODINETS_GATE
    changed = {"hidden": 8, "batch_norm": True, "activation": False, "bias": [0.5, 1.0]}
    for name, value in changed.items():
        now = tuple(value) if isinstance(value, list) else value
        gate = built("method codinet", gate={name: value}).gate
        assert gate == replace(CODINETS_GATE, **{name: now})


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    low: int = 1
    high: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Middle:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    middle: Middle = field(default_factory=lambda: Middle(inner=Inner(low=5, high=6), rate=0.5))
    perhaps: Inner | None = field(default_factory=lambda: Inner(low=7))
    none: Inner | None = None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"middle": {"inner": {"high": 9}}}, Outer(middle=Middle(inner=Inner(low=5, high=9), rate=0.5))),
        ({"middle": {"rate": 0.2}}, Outer(middle=Middle(inner=Inner(low=5, high=6), rate=0.2))),
        ({"perhaps": {"high": 3}}, Outer(perhaps=Inner(low=7, high=3))),
        ({"perhaps": None}, Outer(perhaps=None)),
        ({"none": {"high": 3}}, Outer(none=Inner(high=3))),
    ],
)
def test_settings_two_levels_deep_and_those_that_may_be_missing(
    values: dict[str, Any], expected: Outer
) -> None:
    errors: list[str] = []
    assert schema.build(Outer, values, "here", errors) == expected
    assert not errors


def recipe_file(folder: Path, **method: Any) -> Path:
    path = folder / "codinet.yaml"
    recipe = {
        "method": {"name": "codinet", "num_units": 2, **method},
        "training": {"phases": [{"name": "joint", "epochs": 1}]},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_line_of_a_recipe_and_an_override_keep_codinets_gate(tmp_path: Path) -> None:
    without = replace(CODINETS_GATE, activation=False)
    assert load_recipe(recipe_file(tmp_path), ["--method.gate.activation=false"]).settings.gate == without
    path = recipe_file(tmp_path, gate={"activation": False})
    assert load_recipe(path).settings.gate == without
    wide = load_recipe(path, ["--method.gate.hidden", "8"])
    assert wide.settings.gate == replace(without, hidden=8)
    assert from_dict(wide.as_dict()) == wide


def test_a_phase_that_changes_another_setting_keeps_the_gate(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, gate={"activation": False})
    recipe = load_recipe(path, ["--training.phases.0.settings.gate_mode=hard"])
    assert recipe.settings.gate == replace(CODINETS_GATE, activation=False)
    assert recipe.training.phases[0].settings == {"gate_mode": "hard"}


def test_the_help_of_a_recipe_shows_codinets_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_file(tmp_path)), "--method.gate.activation=false", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    now = re.findall(r"--method\.gate\.(\w+) .*?\((now: \w+|not set)\)", text)
    assert dict(now) == {
        "hidden": "not set",
        "batch_norm": "now: false",
        "activation": "now: false",
        "bias": "not set",
    }


def test_wrap_keeps_codinets_gate() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    router = sidestep.wrap(model, method="codinet", num_units=2, gate={"activation": False}).router
    assert isinstance(router, GateRouter) and not router.activation
    channels = [unit.in_channels for unit in sidestep.wrap(model).backbone.units]
    assert [tuple(inner[0].weight.shape) for inner in router.inner] == [(c, c) for c in channels]
    assert all(len(inner) == 1 for inner in router.inner)
