"""The pre-activation CIFAR ResNet from its state dict, with functions only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def preact_resnet(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the (B, classes) logits in evaluation mode."""
    x = functional.conv2d(images, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in state:
            x = _block(state, f"layer{stage}.{index}", x, stage, index)
            index += 1
    pooled = _activated(state, "bn", x.mean(dim=(2, 3)))
    return pooled @ state["fc.weight"].T + state["fc.bias"]


def _block(state: dict[str, Tensor], name: str, x: Tensor, stage: int, index: int) -> Tensor:
    stride = 2 if index == 0 and stage > 1 else 1
    before = _activated(state, f"{name}.bn1", x)
    branch = functional.conv2d(before, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    # The released code's BatchNorm has a leaky ReLU, and its convolution applies another one behind it.
    twice = _leaky(_activated(state, f"{name}.bn2", branch))
    branch = functional.conv2d(twice, state[f"{name}.conv2.weight"], padding=1)
    shortcut = before if (stage, index) == (1, 0) else x
    if stride == 2:
        pooled = sum(shortcut[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        zeros = torch.zeros_like(pooled[:, : x.shape[1] // 2])
        shortcut = torch.cat([zeros, pooled, zeros], dim=1)
    return shortcut + branch


def _activated(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(shape) for key in ("running_mean", "running_var", "weight", "bias")
    )
    normed = (x - mean) / torch.sqrt(var + 1e-3) * weight + bias
    return _leaky(normed)


def _leaky(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.1 * x)
