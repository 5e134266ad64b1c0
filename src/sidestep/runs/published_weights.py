"""Trained weights of static networks that others have published: downloaded, checked, and kept."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import save

from sidestep.backbones.static_weights import load_static_weights
from sidestep.errors import CheckpointError, OutputError, RecipeError, typed
from sidestep.files import read_safetensors, write_file
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.registry import did_you_mean
from sidestep.runs.recipe import Recipe

FOLDER = Path("weights")
# Where a file says what its weights were trained with.
ABOUT = "sidestep_static"
_TIMM = "timm/"
_IDELBAYEV = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
_IMAGENET_PIXELS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights that somebody has published.

    Attributes:
        model: whose they are, as recipes name it.
        url: of the file.
        sha256: beginning of its checksum.
        about: settings of a recipe that they were trained with, by section.
        summary: one line for lists.
    """

    model: str
    url: str
    sha256: str
    about: Mapping[str, Mapping[str, Any]]
    summary: str


def _idelbayev(depth: int, sha256: str, accuracy: float) -> PublishedWeights:
    return PublishedWeights(
        model=f"cifar_resnet{depth}",
        url=f"{_IDELBAYEV}/resnet{depth}-{sha256}.th",
        sha256=sha256,
        about={"model": {"shortcut": "A"}, "data": _IMAGENET_PIXELS},
        summary=f"ResNet-{depth} of Yerlan Idelbayev (BSD), CIFAR-10, {accuracy:.2f} %",
    )


PUBLISHED = {
    "resnet20-cifar10": _idelbayev(20, "12fca82f", 91.73),
    "resnet32-cifar10": _idelbayev(32, "d509ac18", 92.63),
    "resnet44-cifar10": _idelbayev(44, "014dd654", 93.10),
    "resnet56-cifar10": _idelbayev(56, "4bfd9763", 93.39),
    "resnet110-cifar10": _idelbayev(110, "1d1ed7c2", 93.68),
}


def weights_path(name: str) -> Path:
    """Return where recipes look for published weights."""
    return FOLDER / f"{name.removeprefix(_TIMM)}.safetensors"


def fetch_weights(name: str, out: Path | None = None, *, file: Path | None = None) -> Path:
    """Download published weights, check them, and return the safetensors file that holds them.

    Args:
        name: one of `PUBLISHED`, or "timm/" and the name of a network of timm with weights.
        out: the file; by default where recipes look for it.
        file: a copy of the published file that is there already, instead of a download.

    Raises:
        RecipeError: for a name that nothing was published under.
        CheckpointError: when the file cannot be downloaded, is not what was published, or does not fit.
        OutputError: when it cannot be written.
    """
    out = out or weights_path(name)
    if out.exists():
        raise OutputError(f"weights {out} must be a new file, and there is one; remove it, or choose --out")
    if name.startswith(_TIMM):
        if file is not None:
            raise RecipeError(f"file has no effect on {name!r}, which timm downloads, got {file}; drop it")
        config = ModelConfig(name=name, pretrained=True)
        tensors, about = _timm_weights(config), {}
    else:
        if name not in PUBLISHED:
            raise RecipeError(
                f"weights must be {', '.join(PUBLISHED)} or timm/<name>, got {name!r}"
                f"{did_you_mean(name, PUBLISHED)}"
            )
        published = PUBLISHED[name]
        tensors, about = _checked(published, file), {ABOUT: json.dumps(published.about)}
    write_file(out, save(tensors, metadata=about or None), what="weights")
    return out


def about_weights(path: Path) -> dict[str, dict[str, Any]]:
    """Return the settings that a safetensors file of static weights says they were trained with, by section.

    Raises:
        CheckpointError: when the file is damaged.
    """
    text = read_safetensors(path)[1].get(ABOUT, "{}")
    try:
        about = json.loads(text)
        pixels = about.get("data", {})
        numbers = [value for key in ("mean", "std") for value in pixels.get(key, ())]
        groups = about.keys() <= {"model", "data"} and all(isinstance(part, dict) for part in about.values())
        whole = groups and all(map(math.isfinite, numbers))
    except (ValueError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"weights {path} must say in their header what they were trained with, and {text[:40]!r} does "
            "not; let `sidestep weights` write them again"
        )
    found: dict[str, dict[str, Any]] = about
    return found


def check_start(recipe: Recipe, path: Path) -> None:
    """Return if a recipe can start from a file of static weights, as far as the file says what it is.

    Names and shapes tell neither normalisation nor shortcuts without weights: a network that starts from
    others is wrong without an error.

    Raises:
        CheckpointError: when there is no such file, with the way to get it.
        RecipeError: for a setting that the weights were not trained with.
    """
    if not path.is_file():
        name = next((known for known in PUBLISHED if path.name == weights_path(known).name), None)
        name = name or (
            f"timm/{path.stem}" if recipe.model.name.startswith(("preact_resnet", "resnet")) else None
        )
        way_out = "point model.init to weights of your own"
        if name is not None:
            way_out = f"`sidestep weights {name} --out {typed(path)}` downloads them, or {way_out}"
        raise CheckpointError(
            f"static weights {path} (model.init) must be a file, and there is none; {way_out}"
        )
    if path.suffix != ".safetensors":
        return
    for section, trained in about_weights(path).items():
        values = recipe.as_dict()[section]
        for key, wanted in trained.items():
            if values.get(key, wanted) != wanted:
                raise RecipeError(
                    f"{section}.{key} must be {wanted} for the weights in {path}, which were trained so, "
                    f"got {values[key]}"
                )


def _checked(published: PublishedWeights, file: Path | None) -> dict[str, torch.Tensor]:
    """Return the tensors of a published file, by the names of its network."""
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = Path(folder) / Path(published.url).name
            _download(published, file)
        _check_sum(published, file)
        backbone = build_backbone(ModelConfig(name=published.model), num_classes=10)
        load_static_weights(backbone, file)
    return {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}


def _download(published: PublishedWeights, file: Path) -> None:
    try:
        torch.hub.download_url_to_file(published.url, str(file), progress=False)
    except (URLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"{published.url} could not be downloaded ({why}); give a copy of it with --file"
        ) from error


def _check_sum(published: PublishedWeights, file: Path) -> None:
    try:
        found = sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"weights {file} must be a file that can be read, and it cannot ({error.strerror or error}); "
            "leave --file out to download it"
        ) from error
    if not found.startswith(published.sha256):
        raise CheckpointError(
            f"weights {file} must be those of {published.url}, with a SHA-256 that begins with "
            f"{published.sha256}, got {found[:8]}; they were changed or cut short, download them again"
        )


def _timm_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    from sidestep.backbones.timm_models import pretrained_state

    return pretrained_state(config.name.removeprefix(_TIMM))
