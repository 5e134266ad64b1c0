"""The package of a trained network: `config.json` and `model.safetensors`, see docs/hub.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from sidestep.data.preparation import preparation_from
from sidestep.errors import CheckpointError, SidestepError
from sidestep.evaluation.exit_curve import ExitCalibration
from sidestep.files import read_json, read_safetensors, write_file
from sidestep.training.state import layout_of

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# The object in config.json that timm does not have.
OWN = "sidestep"
FORMAT = 1
_AGAIN = "let `sidestep push` write it again"
# More than any price list needs, and little enough to be read.
_MOST_CONFIG_BYTES = 64 * 2**20
# Of the images; a network is run on one of them to price it.
_LARGEST_SIDE = 4096
# Keys of recipes that name files, which are not in the package, and nothing may be read from elsewhere.
_FILES = ("init", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A trained network with what belongs to it.

    Attributes:
        config: content of `config.json`: timm's keys, and one object of ours under `OWN`.
        tensors: of the network, by the names of its state dict.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def own(self) -> dict[str, Any]:
        """Return the object that timm does not have."""
        own: dict[str, Any] = self.config[OWN]
        return own


def write_package(folder: Path, package: Package, card: str) -> list[Path]:
    """Write a package and its card into a folder, which is made, and return the files.

    Raises:
        OutputError: when one cannot be written.
    """
    # Copies: safetensors refuses tensors that share memory, as routers that share weights have them.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in package.tensors.items()}
    content: dict[str, bytes | str] = {
        CONFIG: json.dumps(_standard(package.config), indent=1, allow_nan=False) + "\n",
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        CARD: card,
    }
    for name, each in content.items():
        write_file(folder / name, each, what="package")
    return [folder / name for name in content]


def read_package(folder: Path) -> Package:
    """Return the package in a folder; nothing in it is executed, and no other file is read.

    Raises:
        CheckpointError: when a file is missing or damaged, or not what `write_package` writes.
    """
    package = Package(config=read_config(folder), tensors=read_safetensors(folder / WEIGHTS)[0])
    if not package.tensors:
        raise CheckpointError(f"package {folder} must hold weights, and its {WEIGHTS} has none; {_AGAIN}")
    return package


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked content of a package's `config.json`.

    Raises:
        CheckpointError: when it is missing or damaged, of another program or a newer release, or names files.
    """
    path = folder / CONFIG
    size = path.stat().st_size if path.is_file() else 0
    if size > _MOST_CONFIG_BYTES:
        raise CheckpointError(
            f"{path} must have at most {_MOST_CONFIG_BYTES >> 20} MiB to be read, got {size >> 20}; {_AGAIN}"
        )
    config = read_json(path, what="package's", way_out=_AGAIN)
    own = config.get(OWN) if isinstance(config, dict) else None
    if not isinstance(own, dict):
        raise CheckpointError(
            f"{path} must have an object {OWN!r}, which `sidestep push` writes, and has none; for weights of "
            "timm name timm/<name>"
        )
    if own.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be of format {FORMAT}, got {own.get('format')!r}; use the release of sidestep that "
            "wrote it"
        )
    if (wrong := _wrong(config, own)) is not None:
        raise CheckpointError(f"{path} must have {wrong}, and has not; {_AGAIN}")
    if (named := _named_file(own["recipe"])) is not None:
        raise CheckpointError(
            f"{path} must name no files, which a package does not hold, got {named}; {_AGAIN}"
        )
    return dict(config)


def _standard(value: Any) -> Any:
    """Return plain values without infinities and NaN, which JSON has not: ±3e38, as in plans, and null."""
    if isinstance(value, dict):
        return {key: _standard(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(3e38, value)
    return value


def _wrong(config: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Return what a configuration lacks, or None."""
    names, size, results = config.get("label_names"), own.get("input_size"), own.get("results")
    recipe = own.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
        return "a recipe"
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return "the names of the classes as label_names"
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        return "height and width as input_size"
    if not isinstance(results, dict) or not isinstance(own.get("environment"), dict):
        return "results and environment"
    return _wrong_of_run(own, results)


def _wrong_of_run(own: Mapping[str, Any], results: Mapping[str, Any]) -> str | None:
    """Return what is no value that a run could have had, or None."""
    try:
        if own.get("preparation") is not None:
            preparation_from(own["preparation"])
        if own.get("thresholds") is not None:
            _ = ExitCalibration(**own["thresholds"]).rule
        layout_of(own)
    except (TypeError, ValueError, KeyError, AttributeError, SidestepError):
        return "a preparation, thresholds and ranges of bytes that a run has had, or null"
    curves = own.get("budgets")
    if not isinstance(curves, dict) or not all(isinstance(curve, dict | None) for curve in curves.values()):
        return "objects, or null, in budgets"
    numbers = (own.get("asked"), results.get("minutes"))
    if not all(isinstance(number, float | int | None) for number in numbers):
        return "numbers, or null, as asked and minutes"
    # Whether they fit the network is seen where that is built.
    if not isinstance(own.get("biases"), list | None) or not isinstance(own.get("frontier"), dict | None):
        return "a list of biases and an object as frontier, or null"
    return None


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE


def _named_file(values: Any, key: str = "") -> str | None:
    """Return what a recipe wants to read, or None; the data that it was trained on is the user's to fetch."""
    if isinstance(values, dict):
        found = (_named_file(value, name) for name, value in values.items())
    elif isinstance(values, list):
        found = (_named_file(value, key) for value in values)
    else:
        return f"{key} {values!r}" if key in _FILES and values is not None else None
    return next((each for each in found if each is not None), None)
