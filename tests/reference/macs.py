"""What convolutions and linear layers really multiplied, counted by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def counted_macs(module: nn.Module) -> Iterator[list[int]]:
    """Yield a list that receives the MACs of every convolution and linear layer that runs."""
    macs: list[int] = []

    def convolution(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        macs.append(output.numel() * layer.in_channels // layer.groups * kernel)

    def linear(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs.append(output.numel() * layer.in_features)

    handles = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(convolution))
        elif isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_hook(linear))
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()
