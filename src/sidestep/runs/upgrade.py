"""Recipes of older checkpoints and files, said with today's keys."""

from __future__ import annotations

from typing import Any

VERSION = 2

# The `model:` section of version 1 was one list of keys for all networks: those that its network had no use
# for had these values. A RANet's and an MSDNet's settings were sections of their own.
_DEFAULTS: dict[str, Any] = {
    "shortcut": None,
    "mix": "output",
    "options": 2,
    "se_ratio": None,
    "skip": "relu",
    "preact": False,
    "init": None,
    "pretrained": False,
    "units": "blocks",
    "exits": {"at": [], "width": 64},
}
_SECTIONS: dict[str, dict[str, Any]] = {
    "ranet": {
        "scale_list": [1, 2, 3],
        "blocks": 2,
        "block_step": 2,
        "step": 4,
        "stepmode": "even",
        "channels": 16,
        "growth": 6,
        "gr_factor": [4, 2, 1],
        "bn_factor": [4, 2, 1],
        "reduction": 0.5,
        "compress": 0.25,
        "stem": "cifar",
        "num_classes": 10,
    },
    "msdnet": {
        "num_scales": 3,
        "blocks": 10,
        "base": 4,
        "step": 2,
        "stepmode": "even",
        "prune": "max",
        "channels": 16,
        "growth": 6,
        "gr_factor": [1, 2, 4],
        "bn_factor": [1, 2, 4],
        "reduction": 0.5,
        "stem": "cifar",
        "num_classes": 10,
    },
}


# What runs trained with that were written before a setting was there: section, beginning of the name,
# settings.
_EARLIER: list[tuple[str, str, dict[str, Any]]] = [
    ("model", "cifar_preact_resnet", {"inner_leak": 0.1}),
    ("method", "blockdrop", {"policy_shortcut": "B"}),
    ("data", "", {"holdout": "random"}),
]


def upgrade_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a recipe with the keys of today.

    Version 1 wrote no version. What it says that is wrong stays, so that errors name it. Runs write every
    setting there is, so one that a run does not know is what it was at that time; what a person leaves out is
    today's default.

    Args:
        values: of a recipe of any version; left untouched.
    """
    if "version" in values:
        return _as_it_was(values)
    model = values.get("model")
    of_a_run = isinstance(model, dict) and model.keys() >= _DEFAULTS.keys()
    changed = _from_version_1(values)
    return _as_it_was(changed) if of_a_run else changed


def _as_it_was(values: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for section, beginning, earlier in _EARLIER:
        part = values.get(section)
        if (
            isinstance(part, dict)
            and str(part.get("name")).startswith(beginning)
            and earlier.keys() - part.keys()
        ):
            changed[section] = earlier | part
    return values | changed if changed else values


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    if isinstance(values.get("model"), dict):
        changed["model"] = _model(values["model"])
    data = values.get("data")
    if isinstance(data, dict) and data.get("root", "") is None:
        # Sources that download nothing have no such key any more.
        changed["data"] = {key: value for key, value in data.items() if key != "root"}
    return changed


def _model(values: dict[str, Any]) -> dict[str, Any]:
    model = dict(values)
    name = str(model.get("name", "cifar_resnet32"))
    if model.get("preact") is True:
        del model["preact"]
        name = name.replace("resnet", "preact_resnet", 1)
        model["name"] = name
    kept = _kept(name)
    for key, default in _DEFAULTS.items():
        if key in model and key not in kept and model[key] == default:
            del model[key]
    if name.startswith("resnet") and model.get("shortcut") == "B":
        # Photographs' ResNets could name the one shortcut that they have.
        del model["shortcut"]
    if model.get("shortcut", "") is None:
        del model["shortcut"]
    for section, defaults in _SECTIONS.items():
        given = model.get(section)
        if not isinstance(given, dict):
            continue
        if section == name:
            del model[section]
            model |= {key: value for key, value in given.items() if key != "num_classes" or value != 10}
        elif all(defaults.get(key, given) == value for key, value in given.items()):
            del model[section]
    return model


def _kept(name: str) -> set[str]:
    """Return the keys of version 1 that a model still has."""
    if name in _SECTIONS:
        return set()
    common = {"init", "exits"}
    if name.startswith("timm/"):
        return common | {"pretrained", "units"}
    if "preact_resnet" in name:
        return common
    blocks = {"mix", "se_ratio", "skip"}
    return common | blocks | ({"shortcut", "options"} if name.startswith("cifar_resnet") else set())
