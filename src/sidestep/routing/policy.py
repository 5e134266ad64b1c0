"""BlockDrop's router: a small network looks at the image once and decides about all units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.routing.router import Router, always


class PolicyRouter(Router):
    """Decides about every unit before the first one runs (BlockDrop).

    Args:
        network: maps (B, 3, H / shrink, W / shrink) images to (B, L), the logit of executing each unit.
        shrink: factor by which images are average-pooled before; 1 on CIFAR, 2 on ImageNet.
    """

    def __init__(self, network: nn.Module, *, shrink: int = 1) -> None:
        super().__init__()
        self.network = network
        self.shrink = shrink

    def begin(self, images: Tensor) -> Tensor:
        """Return the (B, L, 2) logits of all units."""
        execute: Tensor = self.network(F.avg_pool2d(images, self.shrink) if self.shrink > 1 else images)
        return torch.stack([torch.zeros_like(execute), execute], dim=2)

    def forward(self, unit: int, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, unit], state


class LastUnitsRouter(Router):
    """Asks a router about the last units only and executes all before them (BlockDrop's curriculum).

    Args:
        router: asked; it stays where it is registered.
        num_free: how many of the last units it is asked about.
    """

    def __init__(self, router: PolicyRouter, num_free: int) -> None:
        super().__init__()
        self._router = (router,)  # in a tuple it is no submodule
        self.num_free = num_free

    def begin(self, images: Tensor) -> Tensor:
        """Return the (B, L, 2) logits of all units, infinitely in favour of executing the first ones."""
        logits: Tensor = self._router[0].begin(images).clone()
        forced = max(0, logits.shape[1] - self.num_free)
        logits[:, :forced] = always(1, 2, logits).unsqueeze(1)
        return logits

    def forward(self, unit: int, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, unit], state
