"""How far the answers of a plan are from those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.targets.torch_plan import PlanOutput

# Of decisions and of predictions no larger share is wanted to change, and no larger divergence, in nats.
_MAY_CHANGE = 0.01
_MAY_DIVERGE = 0.02
# How many standard errors above the limit a share counts as larger: one side of 95 %.
_SURE = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How far the answers of a plan are from those of another.

    Attributes:
        decisions: share of decisions, exits among them, that differ.
        predictions: share of images whose class differs.
        divergence: mean of the Kullback-Leibler divergences of the classes' probabilities, in nats.
        decisions_error: standard error of that share, with images and not decisions as what was drawn.
        predictions_error: likewise.
    """

    decisions: float
    predictions: float
    divergence: float
    decisions_error: float
    predictions_error: float

    @property
    def is_small(self) -> bool:
        """Return whether nothing says that it is larger than is wanted.

        Few images say little: two of 192 are 1.04 %, and come of 0.2 % as well as of 3 %. So a share is too
        large where the lower end of its one-sided 95 % interval is.
        """
        shares = (self.decisions, self.decisions_error), (self.predictions, self.predictions_error)
        return self.divergence <= _MAY_DIVERGE and all(
            share - _SURE * error <= _MAY_CHANGE for share, error in shares
        )


def change_between(real: Sequence[PlanOutput], other: Sequence[PlanOutput], *, num_exits: int = 0) -> Change:
    """Return how far answers to the same images are from others.

    Args:
        real: answers to all batches.
        other: to the same.
        num_exits: of the network, in front of the last; where there are some, the exit that an image takes is
            one of its decisions.
    """
    changed, made, predictions, divergences = [], [], [], []
    for a, b in zip(real, other, strict=True):
        options = [torch.as_tensor(each.options) for each in (a, b)]
        asked = (options[0] >= 0) & (options[1] >= 0)
        left = (torch.as_tensor(a.exits) != torch.as_tensor(b.exits)) & (num_exits > 0)
        changed.append(((options[0] != options[1]) & asked).sum(dim=1) + left)
        made.append(asked.sum(dim=1) + (num_exits > 0))
        logits = [torch.as_tensor(each.logits).double().log_softmax(dim=1) for each in (a, b)]
        predictions.append(logits[0].argmax(dim=1) != logits[1].argmax(dim=1))
        divergences.append((logits[0].exp() * (logits[0] - logits[1])).sum(dim=1))
    decisions, decisions_error = _share(torch.cat(changed), torch.cat(made))
    wrong = torch.cat(predictions)
    share, error = _share(wrong, torch.ones_like(wrong))
    return Change(
        decisions=decisions,
        predictions=share,
        divergence=torch.cat(divergences).mean().item(),
        decisions_error=decisions_error,
        predictions_error=error,
    )


def _share(some: Tensor, all_: Tensor) -> tuple[float, float]:
    """Return the share of some among all, and its standard error, given (N) counts of every image.

    A ratio of two sums over images, whose variance is that of the residuals (Cochran, Sampling Techniques,
    eq. 6.13): the decisions about one image are no independent draws.
    """
    some, all_ = some.double(), all_.double()
    total = all_.sum().clamp_min(1.0)
    share = some.sum() / total
    return share.item(), ((some - share * all_).square().sum().sqrt() / total).item()
