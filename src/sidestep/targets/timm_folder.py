"""Static networks as folders that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import differences
from sidestep.errors import ExportError
from sidestep.files import check_new_folder, whole_folder
from sidestep.networks.routed import RoutedNetwork
from sidestep.targets.export_target import Exportable, ExportTarget

_TIMM = "timm/"
_WAY_OUT = "choose another with --out"
# Our networks whose tensors are timm's, under the names that timm has.
_SAME = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"preact_resnet{depth}": f"resnetv2_{depth}" for depth in (50, 101, 152)},
}


def _write(exportable: Exportable, path: Path) -> str:
    """Write `config.json` and `model.safetensors` as timm does itself, into a new or empty folder."""
    # Imported where it is needed, since timm takes seconds.
    from timm.models import save_for_hf

    check_new_folder(path, what="folder", way_out=_WAY_OUT, error=ExportError)
    name, network = _as_timm(exportable)
    with whole_folder(path, way_out=_WAY_OUT, error=ExportError) as folder:
        save_for_hf(
            network,
            str(folder),
            model_config=_config(exportable),
            model_args=_arguments(name, exportable),
            safe_serialization=True,
        )
    return f"{name} of timm, which `timm.create_model('local-dir:{path}', pretrained=True)` loads"


def _as_timm(exportable: Exportable) -> tuple[str, nn.Module]:
    """Return timm's name of a network, and timm's network with its weights.

    Raises:
        ExportError: for one that decides, or that timm does not have.
    """
    from sidestep.backbones.timm_models import build_timm_whole

    model, network = exportable.about["model"], exportable.network
    name = model.removeprefix(_TIMM) if model.startswith(_TIMM) else _SAME.get(model)
    if not isinstance(network, RoutedNetwork) or network.router is not None or len(network.exits):
        raise ExportError(
            "timm runs static networks alone, got one with routers or exits; `sidestep push` shares it, and "
            "other targets of --to run it"
        )
    if name is None:
        raise ExportError(f"timm must have the network, and has no {model}; `sidestep push` shares it")
    theirs = build_timm_whole(
        name, len(exportable.class_names), exportable.input_size, in_channels=len(exportable.mean)
    ).eval()
    tensors = _by_timms_names(network.backbone, theirs)
    if differing := differences(theirs.state_dict(), tensors):
        raise ExportError(
            f"timm must have the network, and its {name} differs: ours {next(iter(differing.values()))}; "
            "train without model settings that timm does not have, or share the run with `sidestep push`"
        )
    theirs.load_state_dict(tensors)
    _check_same(network, theirs, exportable)
    return name, theirs


def _by_timms_names(backbone: Backbone, theirs: nn.Module) -> dict[str, Tensor]:
    wanted = theirs.state_dict()
    known = {backbone.static_name(name): name for name in wanted}
    tensors = {known.get(name, name): tensor for name, tensor in backbone.origin.state_dict().items()}
    for name, tensor in tensors.items():
        # Some of timm's linear layers are 1x1 convolutions.
        if name in wanted and wanted[name].shape == (*tensor.shape, 1, 1):
            tensors[name] = tensor.reshape(wanted[name].shape)
    return tensors


def _check_same(network: nn.Module, theirs: nn.Module, exportable: Exportable) -> None:
    """Refuse a network of which timm's says something else, though all names and shapes fit."""
    images = torch.randn(
        2, len(exportable.mean), *exportable.input_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        found, wanted = theirs(images), network(images).logits
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        raise ExportError(
            "timm's network must say what ours says of an image, and differs by "
            f"{(found - wanted).abs().max()}; share the run with `sidestep push`"
        )


def _config(exportable: Exportable) -> dict[str, Any]:
    known = exportable.preparation
    pixels = {
        "input_size": (len(exportable.mean), *exportable.input_size),
        "mean": tuple(exportable.mean),
        "std": tuple(exportable.std),
        "interpolation": "bilinear" if known is None else known.interpolation,
        "crop_pct": 1.0 if known is None else known.crop_share,
        "crop_mode": "center",
        "num_classes": len(exportable.class_names),
    }
    return {"label_names": list(exportable.class_names), "pretrained_cfg": pixels}


def _arguments(name: str, exportable: Exportable) -> dict[str, Any] | None:
    """Return what timm has to be told to build the network again."""
    import timm

    arguments: dict[str, Any] = {}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = list(exportable.input_size)
    if len(exportable.mean) != 3:
        arguments["in_chans"] = len(exportable.mean)
    return arguments or None


TIMM = ExportTarget(
    name="timm",
    summary="folder of a static network that timm loads (docs/hub.md)",
    suffix=".timm",
    write=_write,
)
