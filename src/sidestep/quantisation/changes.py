"""How far the answers of a plan are from those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sidestep.targets.torch_plan import PlanOutput

# Of decisions and of predictions no larger share is wanted to change, and no larger divergence, in nats.
_MAY_CHANGE = 0.01
_MAY_DIVERGE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How far the answers of a plan are from those of another.

    Attributes:
        decisions: share of decisions, exits among them, that differ.
        predictions: share of images whose class differs.
        divergence: mean of the Kullback-Leibler divergences of the classes' probabilities, in nats.
    """

    decisions: float
    predictions: float
    divergence: float

    @property
    def is_small(self) -> bool:
        """Return whether it is as small as is wanted."""
        return max(self.decisions, self.predictions) <= _MAY_CHANGE and self.divergence <= _MAY_DIVERGE


def change_between(real: Sequence[PlanOutput], other: Sequence[PlanOutput]) -> Change:
    """Return how far answers to the same images are from others, given all batches of both."""
    decisions, predictions, divergences = [], [], []
    for a, b in zip(real, other, strict=True):
        options = [torch.as_tensor(each.options) for each in (a, b)]
        asked = (options[0] >= 0) & (options[1] >= 0)
        decisions += [(options[0] != options[1])[asked], torch.as_tensor(a.exits) != torch.as_tensor(b.exits)]
        logits = [torch.as_tensor(each.logits).double().log_softmax(dim=1) for each in (a, b)]
        predictions.append(logits[0].argmax(dim=1) != logits[1].argmax(dim=1))
        divergences.append((logits[0].exp() * (logits[0] - logits[1])).sum(dim=1))
    return Change(
        decisions=torch.cat(decisions).double().mean().item(),
        predictions=torch.cat(predictions).double().mean().item(),
        divergence=torch.cat(divergences).mean().item(),
    )
