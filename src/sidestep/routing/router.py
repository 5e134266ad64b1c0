"""The seam between networks and routers, and the router that has no opinion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.errors import RecipeError
from sidestep.layers.constant import constant
from sidestep.layers.rows import take_rows
from sidestep.routing.samplers import Sampler


class Router(nn.Module):
    """Turns the features in front of a unit, and its own state, into logits.

    `begin` returns the state at the start of a forward pass; calling the router with the unit's index, its
    input, (B, C, H, W) maps or (B, N, C) tokens, and the state returns (B, K) logits and the next state.

    Attributes:
        plan_obstacle: why no plan can say what this router decides, with a way out, or None.
        never: units that it executes for no image, in training too.
        reads_exits: whether it decides by what early exits say, see `see`.
        keeps_images: whether early exits are there for its gates alone, so that no image leaves at one.
    """

    plan_obstacle: ClassVar[str | None] = None
    never: frozenset[int] = frozenset()
    reads_exits: ClassVar[bool] = False
    keeps_images: bool = False

    def begin(self, images: Tensor) -> Any:
        """Return the state before the first unit, given the (B, 3, H, W) images."""
        return None

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def see(self, logits: Tensor, state: Any) -> Any:
        """Return the state behind an early exit.

        Args:
            logits: (B, C) that the exit says.
            state: before it.
        """
        return state

    def sampler(self, settings: Any) -> Sampler | None:
        """Return who turns its logits into weights in training, or None where the method says that.

        Args:
            settings: the method's, at this step.
        """
        return None

    def take(self, state: Any, rows: Tensor) -> Any:
        """Return the state of some of the images, by index, for the rest of the network.

        Here every tensor in the state has one row per image; a router that keeps others there says so itself.
        """
        return take_rows(state, rows)


def reads_exits(router: Router | None) -> bool:
    """Return whether a router, or one inside of it, decides by what early exits say."""
    parts = () if router is None else router.modules()
    return any(isinstance(part, Router) and part.reads_exits for part in parts)


class ConstantRouter(Router):
    """Returns the same logits for every image: fixed paths, random dropping, uniform sampling.

    Args:
        probabilities: (L, K) probability of every option of every unit; 0 and 1 make logits that even a
            sampler with noise obeys.
    """

    logits: Tensor

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", probabilities.log(), persistent=False)

    @classmethod
    def keep(cls, rates: Sequence[float], device: torch.device | None = None) -> ConstantRouter:
        """Return the router that executes every unit with the probability of its keep rate, in [0, 1]."""
        if any(not 0 <= rate <= 1 for rate in rates):
            raise RecipeError(f"keep rates must be in [0, 1], got {list(rates)}; 1 always executes")
        execute = constant(tuple(rates), device or torch.device("cpu"))
        return cls(torch.stack([1 - execute, execute], dim=1))

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        return self.logits[unit].expand(features.shape[0], -1), state


def always(option: int, num_options: int, features: Tensor) -> Tensor:
    """Return (B, K) logits that choose one option for every image, with and without noise."""
    logits = features.new_full((features.shape[0], num_options), -torch.inf)
    logits[:, option] = 0.0
    return logits
