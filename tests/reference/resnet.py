"""The CIFAR ResNet of He et al. from its state dict, with functions only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference.shortcut import shortcut
from tests.reference.squeeze_excite import squeeze_excite


def cifar_resnet(state: dict[str, Tensor], images: Tensor, option: str = "A") -> Tensor:
    """Return the (B, classes) logits in evaluation mode; `option` names the shortcut without parameters."""
    x = torch.relu(_norm(state, "bn1", functional.conv2d(images, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in state:
            stride = 2 if index == 0 and stage > 1 else 1
            x = _block(state, f"layer{stage}.{index}", x, stride, option)
            index += 1
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def _block(state: dict[str, Tensor], name: str, x: Tensor, stride: int, option: str) -> Tensor:
    branch = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    branch = torch.relu(_norm(state, f"{name}.bn1", branch))
    branch = functional.conv2d(branch, state[f"{name}.conv2.weight"], padding=1)
    branch = _norm(state, f"{name}.bn2", branch)
    if f"{name}.se.fc1.weight" in state:
        prefix = f"{name}.se."
        parts = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        branch = squeeze_excite(branch, parts)
    skipped = x
    if f"{name}.downsample.0.weight" in state:
        skipped = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
        skipped = _norm(state, f"{name}.downsample.1", skipped)
    elif stride == 2:
        skipped = shortcut(x, 2 * x.shape[1], stride, option)
    return torch.relu(skipped + branch)


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
