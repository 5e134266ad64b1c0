"""Squeeze-and-excitation (Hu et al. 2018): a residual branch that weighs its own channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.layers.overwriting import may_overwrite
from sidestep.layers.pool import global_average_pool


class SqueezeExcite(nn.Module):
    """Multiplies every channel by sigmoid(W2 relu(W1 GAP(x) + b1) + b2), one factor per image and channel.

    Args:
        channels: C of the features.
        ratio: r of the paper, 16 there; the hidden layer has C / r units, rounded down.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // ratio)
        self.fc2 = nn.Linear(channels // ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C, H, W) features scaled."""
        hidden = F.relu(self.fc1(global_average_pool(x)), inplace=True)
        scale = torch.sigmoid(self.fc2(hidden))[:, :, None, None]
        return x.mul_(scale) if may_overwrite(x) else x * scale


def check_se_ratio(ratio: int | None, channels: int) -> None:
    """Do nothing if every block can have squeeze-and-excitation with this ratio, or None for none.

    Args:
        ratio: r.
        channels: of the narrowest block.

    Raises:
        RecipeError: where r would leave a hidden layer without units.
    """
    if ratio is not None and not 1 <= ratio <= channels:
        raise RecipeError(
            f"se_ratio must be from 1 to {channels}, the channels of the narrowest block, got {ratio}; "
            "the paper uses 16, null is no squeeze-and-excitation"
        )
