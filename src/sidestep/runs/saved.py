"""Networks that were wrapped and trained in a loop of one's own: saved in one file, and opened again."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import load_weights
from sidestep.backbones.timm_models import build_timm_whole
from sidestep.cost.macs import measure_cost
from sidestep.data.preparation import Preparation
from sidestep.errors import CheckpointError, RecipeError
from sidestep.networks.cascade_network import check_pixels
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.runs.wrap import wrap
from sidestep.targets import Exportable
from sidestep.training.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, save_checkpoint

_WRAPPED = "wrapped"
_OTHER = "pass the static network as `model`, built as it was (its weights are replaced)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedNetwork:
    """A network from a file of `save`, in evaluation mode.

    Attributes:
        path: of the file.
        network: the network.
        values: plain values that were saved with it.
    """

    path: Path
    network: RoutedNetwork
    values: dict[str, Any]

    def exportable(self) -> Exportable:
        """Return what an export target gets of it."""
        values, network = self.values, self.network
        height, width = values["input_size"]
        if isinstance(network.router, BudgetedRouter):
            network.router = network.router.at(network.router.asked)
        return Exportable(
            network=network,
            cost=measure_cost(network, (height, width)),
            rule=None,
            input_size=(height, width),
            preparation=Preparation(size=(height, width), channels=len(values["mean"])),  # type: ignore[arg-type]
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            per_image_standardization=False,
            class_names=tuple(values["class_names"]),
            about={
                "method": values[_WRAPPED]["method"],
                "model": values["model"],
                "checkpoint": self.path.stem,
            },
        )


def save(
    network: RoutedNetwork,
    path: Path | str,
    *,
    image_size: tuple[int, int],
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Write a network that `wrap` has made, with whatever it has learnt since, in one file.

    `load` and `export_run` take the file where they take a run folder. A network of timm is built again by
    its name; any other static network has to be handed to them.

    Args:
        network: from `wrap`.
        path: of the file, which ends in .safetensors.
        image_size: height and width of the images.
        class_names: in the order of the logits; numbers by default.
        mean: of every channel of pixels in [0, 1], which training subtracted; by default what timm says.
        std: of every channel, by which training divided.

    Raises:
        RecipeError: for a network that `wrap` has not made, or values that do not fit it.
        CheckpointError: when the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise RecipeError(f"path must end in .safetensors, got {path}; rename it")
    wrapping = getattr(network, "wrapping", None)
    if wrapping is None:
        raise RecipeError(
            f"network must be one that wrap has made, got a {type(network).__name__} that it has not; wrap a "
            "static network, and train and save what comes back"
        )
    static = network.backbone.origin
    known = getattr(static, "pretrained_cfg", None) or {}
    channels = network.image_channels
    logits = _probe(network.backbone, image_size)
    means = _per_channel("mean", mean, known.get("mean"), channels)
    deviations = _per_channel("std", std, known.get("std"), channels)
    check_pixels(means, deviations)
    values = {
        _WRAPPED: {"method": wrapping.method, "units": wrapping.units, "settings": wrapping.settings},
        "model": f"timm/{known['architecture']}" if known.get("architecture") else type(static).__qualname__,
        "image_channels": channels,
        "input_size": list(image_size),
        "class_names": _class_names(class_names, logits.shape[1]),
        "mean": means,
        "std": deviations,
    }
    try:
        json.dumps(values)
    except TypeError as error:
        raise RecipeError(
            f"settings of wrap must be plain values to be saved ({error}); use those of a recipe"
        ) from error
    tensors = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    save_checkpoint(path, Checkpoint(tensors={**tensors, "probe.logits": logits}, values=values))


def is_saved(path: Path | str) -> bool:
    """Return whether a path is that of a file, and not of a run folder or package."""
    return Path(path).is_file()


def open_saved(path: Path, model: nn.Module | None = None) -> SavedNetwork:
    """Return the network of a file that `save` has written.

    Args:
        path: of the file.
        model: the static network, built as the saved one was; its weights are replaced. None builds timm's.

    Raises:
        CheckpointError: when the file is damaged or another one, or the network is not that one.
    """
    if not is_checkpoint(path) or _WRAPPED not in (checkpoint := load_checkpoint(path)).values:
        raise CheckpointError(
            f"run {path} must be a run folder, got a file that sidestep.save has not written; name the "
            "folder that `sidestep train` has written"
        )
    values = checkpoint.values
    height, width = values["input_size"]
    wrapped, source = values[_WRAPPED], f"file {path}"
    static = _built(values, source) if model is None else model
    network = wrap(
        static, wrapped["method"], units=wrapped["units"], image_size=(height, width), **wrapped["settings"]
    )
    load_weights(network, checkpoint.section("model"), source)
    network.eval()
    expected = checkpoint.section("probe")["logits"]
    found, near = _probe(network.backbone, (height, width)), 1e-3 * float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=near):
        raise CheckpointError(
            f"{source} must be opened with the static network that it was saved from, and this "
            f"{type(static).__name__} computes something else with the same weights; {_OTHER}"
        )
    return SavedNetwork(path=path, network=network, values=values)


def _built(values: dict[str, Any], source: str) -> nn.Module:
    name = values["model"]
    if not name.startswith("timm/"):
        raise CheckpointError(f"{source} holds a {name}, which is no network of timm; {_OTHER}")
    height, width = values["input_size"]
    return build_timm_whole(
        name.removeprefix("timm/"),
        len(values["class_names"]),
        (height, width),
        in_channels=values["image_channels"],
    )


def _probe(backbone: Backbone, size: tuple[int, int]) -> Tensor:
    """Return the logits of images that are always the same, with every unit executed."""
    twin = copy.deepcopy(backbone).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits: Tensor = twin(torch.randn(2, backbone.image_channels, *size, generator=generator))
    return logits


def _class_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is not None and len(names) != count:
        raise RecipeError(
            f"class_names must be one for each of {count} logits, got {len(names)}; name them all"
        )
    return [str(index) for index in range(count)] if names is None else list(names)


def _per_channel(
    name: str, given: Sequence[float] | None, known: Sequence[float] | None, channels: int
) -> list[float]:
    values = known if given is None else given
    if values is None or len(values) != channels:
        found = "nothing" if values is None else f"{len(values)}"
        raise RecipeError(
            f"{name} must have one number for each of {channels} channels, got {found}; say what training "
            "has normalised images with"
        )
    return [float(value) for value in values]
