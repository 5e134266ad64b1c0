"""The shortcuts without parameters, pixel by pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shortcut(x: Tensor, out_channels: int, stride: int, option: str) -> Tensor:
    """Return option "A", "pool_end" or "pool_both" of (B, C, H, W) features."""
    batch, channels, height, width = x.shape
    before = 0 if option == "pool_end" else (out_channels - channels) // 2
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    out = torch.zeros(batch, out_channels, rows, columns, dtype=x.dtype)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            pixels = [
                x[:, :, i, j]
                for i in range(top, min(top + stride, height))
                for j in range(left, min(left + stride, width))
            ]
            value = pixels[0] if option == "A" else torch.stack(pixels).mean(dim=0)
            out[:, before : before + channels, row, column] = value
    return out
