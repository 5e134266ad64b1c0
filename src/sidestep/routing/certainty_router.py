"""Gates by certainty: a unit executes the images of which the last early exit is least certain."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.routing.router import Router, always


class CertaintyRouter(Router):
    """Gates without parameters, whose logit of execute is how uncertain the last early exit is of an image.

    That is H(p) / ln C in [0, 1] of the probabilities p of C classes; the logit of skip is 0. Exits are
    asked, and nobody leaves there: what a gate skips is a unit, and the image goes on to the network's head.
    Not from a paper that we know of; by the entropy images leave BranchyNet (Teerapittayanon et al., ICPR
    2016).

    Args:
        gated: units that have a gate; the others always execute as far as this router says.
    """

    reads_exits = True
    keeps_images = True

    def __init__(self, gated: Collection[int]) -> None:
        super().__init__()
        self.gated = frozenset(gated)

    def see(self, logits: Tensor, state: Tensor | None) -> Tensor:
        return uncertainty(logits.detach())

    def forward(self, unit: int, features: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if unit not in self.gated:
            return always(1, 2, features), state
        if state is None:
            raise RecipeError(
                f"unit {unit} must have an early exit in front, whose certainty decides about it, got a "
                "share between 0 and 1 and none; name one in model.exits, or set its share to 0 or 1"
            )
        return torch.cat([torch.zeros_like(state), state], dim=1), state


def uncertainty(logits: Tensor) -> Tensor:
    """Return the (B, 1) entropy of (B, C) logits as a share of the largest, ln C, in float32."""
    log_probs = logits.float().log_softmax(dim=1)
    return (log_probs.exp() * log_probs).sum(dim=1, keepdim=True) * (-1 / math.log(max(logits.shape[1], 2)))
