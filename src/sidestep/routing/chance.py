"""A router that decides by chance, yet always the same for the same pixels: the control."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.routing.router import Router

_GRID, _FREQUENCY = 4, 1e4


class ChanceRouter(Router):
    """Executes every unit with a given probability, drawn from a hash of the pixels.

    A draw of its own would make evaluation random and dependent on the order of images; a hash is neither,
    and knows nothing of what is in the image that a network could learn to use.

    Args:
        keep_rates: probability of executing each unit, in [0, 1].
        seed: of the hash.
        in_channels: of the images.
    """

    plan_obstacle = (
        "random_drop decides by a hash of the pixels in float64, and plans have none; export fixed_path, "
        "which costs the same"
    )

    projection: Tensor
    thresholds: Tensor

    def __init__(self, keep_rates: Sequence[float], *, seed: int = 0, in_channels: int = 3) -> None:
        super().__init__()
        if any(not 0 <= rate <= 1 for rate in keep_rates):
            raise RecipeError(f"keep rates must be in [0, 1], got {list(keep_rates)}; 1 always executes")
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(len(keep_rates), in_channels * _GRID**2, generator=generator) * _FREQUENCY
        self.register_buffer("projection", projection.double(), persistent=False)
        self.register_buffer("thresholds", torch.tensor(list(keep_rates)).double(), persistent=False)

    def begin(self, images: Tensor) -> Tensor:
        """Return the (B, L) probabilities above which a unit is not executed, uniform in [0, 1)."""
        pooled = F.adaptive_avg_pool2d(images.double(), _GRID).flatten(1)
        # A sum of products instead of a matrix product: the control is not to pay for its dice.
        mixed = (pooled.unsqueeze(1) * self.projection).sum(dim=2)
        return mixed - mixed.floor()

    def forward(self, unit: int, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        execute = torch.where(state[:, unit] < self.thresholds[unit], 0.0, -math.inf)
        skip = torch.where(state[:, unit] < self.thresholds[unit], -math.inf, 0.0)
        return torch.stack([skip, execute], dim=1), state
