"""Recipes of version 1, as checkpoints of that time hold them, say the same with today's keys."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sidestep.errors import RecipeError
from sidestep.runs.recipe import from_dict
from sidestep.runs.upgrade import upgrade_recipe

RANET: dict[str, Any] = {
    "scale_list": [1, 2, 3], "blocks": 2, "block_step": 2, "step": 4, "stepmode": "even", "channels": 16,
    "growth": 6, "gr_factor": [4, 2, 1], "bn_factor": [4, 2, 1], "reduction": 0.5, "compress": 0.25,
    "stem": "cifar", "num_classes": 10,
}  # fmt: skip
MSDNET: dict[str, Any] = {
    "num_scales": 3, "blocks": 10, "base": 4, "step": 2, "stepmode": "even", "prune": "max", "channels": 16,
    "growth": 6, "gr_factor": [1, 2, 4], "bn_factor": [1, 2, 4], "reduction": 0.5, "stem": "cifar",
    "num_classes": 10,
}  # fmt: skip
# What version 1 wrote for any network.
MODEL: dict[str, Any] = {
    "name": "cifar_resnet32", "shortcut": None, "mix": "output", "options": 2, "se_ratio": None,
    "skip": "relu", "preact": False, "init": None, "pretrained": False, "units": "blocks",
    "exits": {"at": [], "width": 64}, "ranet": RANET, "msdnet": MSDNET,
}  # fmt: skip
COMMON = {"init": None, "init_head": "load", "exits": {"at": [], "width": 64}}
BLOCKS = {"mix": "output", "se_ratio": None, "skip": "relu"}


def version_1(model: dict[str, Any], method: str = "rdi_net", **data: Any) -> dict[str, Any]:
    return {
        "name": "old",
        "method": {"name": method},
        "model": MODEL | model,
        "data": {"source": "digits", "root": None, **data},
        "training": {"phases": [{"name": "joint", "epochs": 1}]},
    }


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cifar": (
        "rdi_net",
        {"options": 3, "se_ratio": 4},
        {"name": "cifar_resnet32", **COMMON, **BLOCKS, "shortcut": "A", "options": 3, "se_ratio": 4},
    ),
    "cifar, shortcut": (
        "rdi_net",
        {"shortcut": "B", "skip": "linear", "init": "w.safetensors", "exits": {"at": ["layer1"], "width": 8}},
        {"name": "cifar_resnet32", **COMMON, **BLOCKS, "shortcut": "B", "options": 2, "skip": "linear"}
        | {"init": "w.safetensors", "exits": {"at": ["layer1"], "width": 8}},
    ),
    "cifar, preact": (
        "act",
        {"preact": True},
        {"name": "cifar_preact_resnet32", **COMMON, "inner_leak": 0.1},
    ),
    "imagenet": (
        "rdi_net",
        {"name": "resnet50", "mix": "branch", "shortcut": "B"},
        {"name": "resnet50", **COMMON, **BLOCKS, "mix": "branch"},
    ),
    "imagenet, preact": (
        "sact",
        {"name": "resnet101", "preact": True, "init": "w.pth"},
        {"name": "preact_resnet101", **COMMON, "init": "w.pth"},
    ),
    "timm": (
        "rdi_net",
        {"name": "timm/test_vit", "units": "sublayers", "pretrained": True},
        {"name": "timm/test_vit", **COMMON, "units": "sublayers", "pretrained": True},
    ),
    "ranet": (
        "ranet",
        {"name": "ranet", "ranet": RANET | {"step": 2}},
        {"name": "ranet", **{key: RANET[key] for key in RANET if key != "num_classes"}, "step": 2},
    ),
    "msdnet": (
        "msdnet",
        {"name": "msdnet", "msdnet": MSDNET | {"bn_factor": None}},
        {"name": "msdnet", **{key: MSDNET[key] for key in MSDNET if key != "num_classes"}, "bn_factor": None},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_model_of_version_1_says_the_same(case: str) -> None:
    method, old, new = CASES[case]
    values = version_1(old, method)
    before = copy.deepcopy(values)
    recipe = from_dict(values)
    assert values == before
    assert recipe.as_dict()["model"] == new
    assert from_dict(recipe.as_dict()) == recipe


def test_a_recipe_of_today_stays_as_it_is() -> None:
    values = from_dict(version_1({})).as_dict()
    assert upgrade_recipe(values) is values


def test_a_recipe_written_by_hand_can_leave_keys_out() -> None:
    model = {"name": "msdnet", "msdnet": {"blocks": 4, "base": 2, "channels": 8}}
    recipe = from_dict({**version_1({}, "msdnet"), "model": model})
    assert (recipe.model.settings.blocks, recipe.model.settings.channels) == (4, 8)
    preact = from_dict({**version_1({}, "act"), "model": {"preact": True}})
    assert preact.model.name == "cifar_preact_resnet32"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "resnet50", "shortcut": "A"}, "model.shortcut is no setting of model resnet50"),
        ({"preact": True, "mix": "branch"}, "model.mix is no setting of model cifar_preact_resnet32"),
        ({"ranet": RANET | {"step": 2}}, "model.ranet is no setting of model cifar_resnet32"),
    ],
)
def test_what_was_wrong_stays_wrong(model: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_dict(version_1(model))


@pytest.mark.parametrize(
    ("section", "name", "key", "then", "today"),
    [
        ("model", "cifar_preact_resnet32", "inner_leak", 0.1, 0.01),
        ("method", "blockdrop", "policy_shortcut", "B", "pool_end"),
        ("data", "digits", "holdout", "random", "stratified"),
    ],
)
def test_what_a_run_did_not_know_is_what_it_was_and_what_a_person_leaves_out_is_todays(
    section: str, name: str, key: str, then: object, today: object
) -> None:
    part = {"source" if section == "data" else "name": name}
    by_hand = {"method": {"name": "act"}, "training": {"phases": []}} | {section: part}
    written = from_dict(by_hand).as_dict()
    assert written[section].pop(key) == today
    assert from_dict(written).as_dict()[section][key] == then
    assert from_dict(by_hand).as_dict()[section][key] == today


def test_a_run_of_version_1_keeps_what_it_held_out() -> None:
    assert from_dict(version_1({})).data.holdout == "random"
