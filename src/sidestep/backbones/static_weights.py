"""Trained weights of static networks, matched by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError
from sidestep.files import read_safetensors
from sidestep.layers.static_names import StaticNames


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into a module whose names and shapes must match exactly.

    Raises:
        CheckpointError: naming the first difference; the module is untouched then.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            problem = f"lacks {name}"
        elif name not in own:
            problem = f"has {name}, which the network lacks"
        elif own[name].shape != tensors[name].shape:
            problem = f"has {name} as {tuple(tensors[name].shape)}, the network as {tuple(own[name].shape)}"
        else:
            continue
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: it {problem}; "
            "check model.name, model.shortcut, model.se_ratio and the number of classes"
        )
    module.load_state_dict(tensors)


def load_static_weights(backbone: nn.Module, path: Path) -> None:
    """Load trained static weights into a backbone: safetensors, or a torch file that holds tensors only.

    The names of a wrapped network are its own. Wrappers that training scripts leave (`state_dict`, `module.`)
    and the classifier's name `linear` are understood, and so are 1x1 convolutions in the place of linear
    layers (timm's squeeze-and-excitation). What skipping alone runs (model.skip: own) stays as it was made
    where the file lacks it, as routers do.

    Raises:
        CheckpointError: when the file is missing, damaged, or of another architecture.
    """
    if path.suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
    else:
        tensors = _read_torch(path)
    renamed = {_static_name(key): tensor for key, tensor in tensors.items()}
    module, fresh = backbone, set[str]()
    if isinstance(backbone, StaticNames):
        module, fresh = backbone.origin, backbone.skip_names
        renamed = {backbone.static_name(key): tensor for key, tensor in renamed.items()}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked") or name in fresh:
            renamed.setdefault(name, tensor)
        elif name in renamed and renamed[name].shape == (*tensor.shape, 1, 1):
            renamed[name] = renamed[name].reshape(tensor.shape)
    load_weights(module, renamed, f"static weights {path}")


def _static_name(key: str) -> str:
    for wrapper in ("module.", "model.backbone.", "backbone.", "network."):
        key = key.removeprefix(wrapper)
    return "fc." + key.removeprefix("linear.") if key.startswith("linear.") else key


def _read_torch(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"weights {path} must be an existing file; check the path or train them first")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"weights {path} are damaged or hold more than tensors; save a state dict as safetensors"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"weights {path} hold no tensors by name; save a state dict as safetensors")
    return tensors
