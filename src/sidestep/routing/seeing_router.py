"""Gates that see how certain the network is so far: what its last early exit has said of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.routing.router import Router

# Largest probability, its distance to the second largest, and what is missing from the largest entropy.
_FIGURES = 3

# Of the gates inside, and the (B, 3) figures of the last exit.
State = tuple[Any, Tensor]


class SeeingRouter(Router):
    """Gates whose logits have a linear function of the last exit's certainty added.

    The figures are the criteria by which images leave at exits: confidence, margin and entropy, in [0, 1] and
    0 in front of the first exit. Weights start at 0, where the gates are those inside. No gradient flows into
    exits, which learn from labels alone. Not from a paper that we know of.

    Args:
        inner: the gates.
        num_units: L.
        num_options: K.
        open: units without a gate, which always execute.
    """

    reads_exits = True
    plan_obstacle = (
        "plans cannot hand what an exit says to the gates behind it; train with method.sees_exits false"
    )

    def __init__(
        self, inner: Router, num_units: int, *, num_options: int = 2, open: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.inner = inner
        self.open = frozenset(open)
        self.weights = nn.Parameter(torch.zeros(num_units, num_options, _FIGURES))

    def begin(self, images: Tensor) -> State:
        return self.inner.begin(images), images.new_zeros(images.shape[0], _FIGURES, dtype=torch.float32)

    def see(self, logits: Tensor, state: State) -> State:
        inner, _ = state
        return inner, certainty_figures(logits.detach())

    def take(self, state: State, rows: Tensor) -> State:
        inner, figures = state
        return self.inner.take(inner, rows), figures[rows]

    def forward(self, unit: int, features: Tensor, state: State) -> tuple[Tensor, State]:
        before, figures = state
        logits, inner = self.inner(unit, features, before)
        if unit not in self.open:
            logits = logits + F.linear(figures.to(logits.dtype), self.weights[unit].to(logits.dtype))
        return logits, (inner, figures)


def seeing(
    gates: Router, num_units: int, wanted: bool, *, num_options: int = 2, open: Sequence[int] = ()
) -> Router:
    """Return gates that see what early exits say, if that is wanted, and else the gates.

    Args:
        gates: a method's.
        num_units: L.
        wanted: the method's setting.
        num_options: K.
        open: units without a gate, which always execute.
    """
    return SeeingRouter(gates, num_units, num_options=num_options, open=open) if wanted else gates


def sees_exits(router: Router | None) -> bool:
    """Return whether a router, or one inside of it, sees what early exits say."""
    return router is not None and any(isinstance(part, SeeingRouter) for part in router.modules())


def certainty_figures(logits: Tensor) -> Tensor:
    """Return (B, 3) confidence, margin and 1 - H(p) / ln C of (B, C) logits, in float32."""
    log_probs = logits.float().log_softmax(dim=1)
    probabilities = log_probs.exp()
    largest = probabilities.topk(min(2, logits.shape[1]), dim=1).values
    certain = 1 + (probabilities * log_probs).sum(dim=1) / math.log(max(logits.shape[1], 2))
    return torch.stack([largest[:, 0], largest[:, 0] - largest[:, -1], certain], dim=1)
