"""The CIFAR ResNet of He et al. from its state dict, with functions only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cifar_resnet(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the (B, classes) logits in evaluation mode."""
    x = torch.relu(_norm(state, "bn1", functional.conv2d(images, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in state:
            stride = 2 if index == 0 and stage > 1 else 1
            x = _block(state, f"layer{stage}.{index}", x, stride)
            index += 1
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def _block(state: dict[str, Tensor], name: str, x: Tensor, stride: int) -> Tensor:
    branch = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    branch = torch.relu(_norm(state, f"{name}.bn1", branch))
    branch = functional.conv2d(branch, state[f"{name}.conv2.weight"], padding=1)
    branch = _norm(state, f"{name}.bn2", branch)
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        shortcut = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
        shortcut = _norm(state, f"{name}.downsample.1", shortcut)
    elif stride == 2:
        zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
        shortcut = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
    return torch.relu(shortcut + branch)


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
