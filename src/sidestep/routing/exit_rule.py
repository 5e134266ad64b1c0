"""Exit rules: when an image has seen enough and leaves at an early exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCriterion:
    """How certain an exit is of an image.

    Attributes:
        name: as commands say it.
        summary: one line for lists.
        score: ((B, C) logits in float64, (B,) how many exits name the same class) -> (B,) scores in float64;
            larger is more certain.
        counts: which exits count as naming it: those "in a row", up to this one, or "all" so far.
        shares_threshold: whether all exits share one threshold: scores that are small whole numbers leave a
            threshold per exit nothing to choose from.
    """

    name: str
    summary: str
    score: Callable[[Tensor, Tensor], Tensor]
    shares_threshold: bool = False
    counts: Literal["in a row", "all"] = "in a row"


def _confidence(logits: Tensor, agreeing: Tensor) -> Tensor:
    return logits.softmax(dim=1).amax(dim=1)


def _margin(logits: Tensor, agreeing: Tensor) -> Tensor:
    largest = logits.softmax(dim=1).topk(2, dim=1).values
    return largest[:, 0] - largest[:, 1]


def _entropy(logits: Tensor, agreeing: Tensor) -> Tensor:
    log_probs = logits.log_softmax(dim=1)
    return 1 + (log_probs.exp() * log_probs).sum(dim=1) / math.log(logits.shape[1])


def _patience(logits: Tensor, agreeing: Tensor) -> Tensor:
    return agreeing.double()


def _agreement(logits: Tensor, agreeing: Tensor) -> Tensor:
    return (agreeing >= 2).double()


_ALL = (
    ExitCriterion(
        name="confidence",
        summary="largest probability, in [1 / C, 1] (BranchyNet, MSDNet, RANet)",
        score=_confidence,
    ),
    ExitCriterion(
        name="margin",
        summary="largest probability minus the second largest, in [0, 1]",
        score=_margin,
    ),
    ExitCriterion(
        name="entropy",
        summary="1 - H(p) / log C, in [0, 1], so that it rises with certainty like the others",
        score=_entropy,
    ),
    ExitCriterion(
        name="patience",
        summary="number of exits in a row that agree, from 1 (PABEE, Zhou et al. 2020)",
        score=_patience,
        shares_threshold=True,
    ),
    ExitCriterion(
        name="agreement",
        summary="1 where an exit before has named the same class, else 0 (agreement-based cascading, 2024)",
        score=_agreement,
        shares_threshold=True,
        counts="all",
    ),
)

CRITERIA: Registry[ExitCriterion] = Registry("criterion", _ALL, key="criterion")


def register_criterion(criterion: ExitCriterion) -> None:
    """Let commands name an exit criterion of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    CRITERIA.add(criterion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """What the exits so far said, one row per image: how certain the last one is, and how many agree with it.

    Attributes:
        score: (B,) score of the last exit; larger is more certain.
        predictions: (B,) its class.
        agreeing: (B,) how many exits in a row have named that class, the last one included.
        named: (B, k) the classes that all k exits so far have named.
    """

    score: Tensor
    predictions: Tensor
    agreeing: Tensor
    named: Tensor

    def take(self, rows: Tensor) -> Certainty:
        """Return the same for some of the images, by index."""
        return Certainty(
            score=self.score[rows],
            predictions=self.predictions[rows],
            agreeing=self.agreeing[rows],
            named=self.named[rows],
        )


def certainty(logits: Tensor, before: Certainty | None, criterion: str) -> Certainty:
    """Return how certain an exit is of every image.

    Args:
        logits: (B, C) of this exit, divided by its temperature.
        before: what the exits before it said; None in front of the first.
        criterion: name of the score, see `CRITERIA`.
    """
    predictions = logits.argmax(dim=1)
    agreeing, named = torch.ones_like(predictions), predictions.unsqueeze(1)
    if before is not None:
        agreeing = torch.where(predictions == before.predictions, before.agreeing + 1, agreeing)
        named = torch.cat([before.named, named], dim=1)
    known = CRITERIA[criterion]
    count = agreeing if known.counts == "in a row" else (named == predictions.unsqueeze(1)).sum(dim=1)
    return Certainty(
        # In float32 all images that a network is sure of would be equally certain, and leave together.
        score=known.score(logits.double(), count),
        predictions=predictions,
        agreeing=agreeing,
        named=named,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRule:
    """At which exit an image leaves: the first whose score reaches its threshold; at the last in any case.

    Args:
        thresholds: of all exits but the last.
        criterion: name of the score that is compared with them, see `CRITERIA`.
        temperatures: by which the logits of every exit are divided first; None divides none.
    """

    thresholds: Sequence[float]
    criterion: str = "confidence"
    temperatures: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise CRITERIA.unknown(self.criterion)
        if self.temperatures is not None and len(self.temperatures) != self.num_exits:
            raise RecipeError(
                f"temperatures must be one for each of {self.num_exits} exits, got {len(self.temperatures)}"
            )
        if min(self.temperatures or (1.0,)) <= 0:
            raise RecipeError(f"temperatures must be above 0, got {self.temperatures}")

    @property
    def num_exits(self) -> int:
        """Return the number of exits, the last one included."""
        return len(self.thresholds) + 1

    def temperatures_of(self, exits: Tensor) -> Tensor | None:
        """Return the (B,) temperatures of exits, or None where logits are not divided.

        Args:
            exits: (B,) indices.
        """
        if self.temperatures is None:
            return None
        return torch.tensor(self.temperatures, dtype=torch.float32, device=exits.device)[exits]

    def certainty(self, index: int, logits: Tensor, before: Certainty | None) -> Certainty:
        """Return how certain exit `index` is of every image.

        Args:
            index: of the exit.
            logits: (B, C) of this exit, as the network computes them.
            before: what the exits before it said.
        """
        scale = 1.0 if self.temperatures is None else self.temperatures[index]
        return certainty(logits.double() / scale, before, self.criterion)

    def leaves(self, index: int, seen: Certainty) -> Tensor:
        """Return (B,) booleans, true for images that leave at exit `index`."""
        if index == len(self.thresholds):
            return torch.ones_like(seen.score, dtype=torch.bool)
        return seen.score >= self.thresholds[index]


def scores(exit_logits: Tensor, criterion: str, temperatures: Sequence[float] | None = None) -> Tensor:
    """Return the (E, N) scores of all exits.

    Args:
        exit_logits: (E, N, C).
        criterion: name of the score.
        temperatures: by which the logits of every exit are divided first.
    """
    rule = ExitRule(thresholds=[0.0] * (len(exit_logits) - 1), criterion=criterion, temperatures=temperatures)
    seen, found = None, []
    for index, logits in enumerate(exit_logits):
        seen = rule.certainty(index, logits, seen)
        found.append(seen.score)
    return torch.stack(found)


def first_exits(exit_scores: Tensor, thresholds: Tensor) -> Tensor:
    """Return the (N,) index of the exit at which every image leaves.

    Args:
        exit_scores: (E, N).
        thresholds: (E - 1,).
    """
    reached = exit_scores[:-1] >= thresholds.unsqueeze(1)
    last = torch.ones_like(exit_scores[-1:], dtype=torch.bool)
    # argmax returns the first of equal values.
    return torch.cat([reached, last]).int().argmax(dim=0)
