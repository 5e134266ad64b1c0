"""What images a network is built for."""

from __future__ import annotations

from torch import nn


def first_in_channels(network: nn.Module) -> int:
    """Return the channels of the images that a network takes: those of its first convolution, or else 3."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3
