"""The seam between networks and routers, and the router that has no opinion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import RecipeError


class Router(nn.Module):
    """Turns the features in front of a unit, and its own state, into logits.

    `begin` returns the state at the start of a forward pass; calling the router with the unit's index, its
    (B, C, H, W) input and the state returns (B, K) logits and the next state.
    """

    def begin(self, images: Tensor) -> Any:
        """Return the state before the first unit, given the (B, 3, H, W) images."""
        return None

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError


class ConstantRouter(Router):
    """Returns the same logits for every image: fixed paths, random dropping, uniform sampling.

    Args:
        keep_rates: probability of executing each unit, in [0, 1]; 0 and 1 make infinite logits, so that even
            a sampler with noise obeys.
    """

    logits: Tensor

    def __init__(self, keep_rates: Sequence[float]) -> None:
        super().__init__()
        if any(not 0 <= rate <= 1 for rate in keep_rates):
            raise RecipeError(f"keep_rates must be in [0, 1], got {list(keep_rates)}; 1 always executes")
        rates = torch.tensor(list(keep_rates))
        self.register_buffer("logits", torch.stack([(1 - rates).log(), rates.log()], dim=1), persistent=False)

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        return self.logits[unit].expand(features.shape[0], -1), state
