"""Eq. 2 to 4 of Hu et al. (2018), channel by channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squeeze_excite(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return (B, C, H, W) features scaled, given the weights and biases of fc1 and fc2."""
    return torch.stack([_one_image(image, state) for image in x])


def _one_image(image: Tensor, state: dict[str, Tensor]) -> Tensor:
    squeezed = [channel.sum() / channel.numel() for channel in image]
    hidden = [value.clamp(min=0) for value in _linear(squeezed, state, "fc1")]
    scales = [1 / (1 + math.e ** (-value)) for value in _linear(hidden, state, "fc2")]
    return torch.stack([scale * channel for scale, channel in zip(scales, image, strict=True)])


def _linear(values: list[Tensor], state: dict[str, Tensor], name: str) -> list[Tensor]:
    return [
        bias + sum(weight * value for weight, value in zip(row, values, strict=True))
        for row, bias in zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)
    ]
