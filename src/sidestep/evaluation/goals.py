"""What thresholds of exits are solved for: a cost, a loss of accuracy, or a risk kept with confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.evaluation.thresholds import ExitTable, Family, between_scores, thresholds_for_budget
from sidestep.routing.exit_rule import first_exits


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitGoal:
    """What is asked of exits: one of the four.

    Attributes:
        macs: largest mean MACs per image.
        ms: largest mean milliseconds per image, by a latency book.
        max_drop: largest loss of accuracy against the last exit, in points, on the images it is solved on.
        risk: largest probability, in (0, 1), that an image which the last exit has right leaves with a wrong
            answer; kept with `confidence` over the images that it is solved on.
        confidence: in (0, 1).
    """

    macs: float | None = None
    ms: float | None = None
    max_drop: float | None = None
    risk: float | None = None
    confidence: float = 0.95

    def thresholds(self, table: ExitTable, criterion: str) -> Tensor:
        """Return the (E - 1,) thresholds that meet the goal at the least cost, or at the largest allowed one.

        Args:
            table: of images that nothing is reported on.
            criterion: of the scores.

        Raises:
            RecipeError: for a goal that no thresholds meet.
        """
        if self.macs is not None:
            return thresholds_for_budget(table, self.macs, criterion)
        if self.ms is not None:
            return thresholds_for_budget(table, self.ms, criterion, unit="ms")
        if self.max_drop is not None:
            return thresholds_for_drop(table, self.max_drop, criterion)
        assert self.risk is not None  # one of the four was asked for
        return thresholds_for_risk(table, self.risk, self.confidence, criterion)


def thresholds_for_drop(table: ExitTable, max_drop: float, criterion: str) -> Tensor:
    """Return the cheapest (E - 1,) thresholds of a family that lose no more than so many points.

    Args:
        table: of images that nothing is reported on.
        max_drop: points below the accuracy of the last exit; below 0 where leaving early has to gain.
        criterion: of the scores.

    Raises:
        RecipeError: when no thresholds lose so little.
    """
    family = Family.of(table.scores, criterion)
    last = table.correct[-1].double().mean().item()
    wanted = last - max_drop / 100
    best = -math.inf
    for row in family.thresholds.unbind():
        accuracy = table.leaving(row).accuracy
        if accuracy >= wanted - 1e-12:
            return between_scores(table.scores, row, criterion)
        best = max(best, accuracy)
    raise RecipeError(
        f"max-drop must be at least {100 * (last - best):.2f} points here, which the best thresholds lose "
        f"against the last exit, got {max_drop}"
    )


def thresholds_for_risk(table: ExitTable, risk: float, confidence: float, criterion: str) -> Tensor:
    """Return the cheapest (E - 1,) thresholds whose risk is at most so large, with a confidence.

    Fixed-sequence testing of "Learn then Test" (Angelopoulos et al. 2021), as early exits use it in "Fast yet
    Safe" (Jazbec et al. 2024): every second image makes a family of thresholds, from all images at the last
    exit down to none, and the others test its members in that order, each by the exact binomial p-value of
    its losses, until one is not rejected. A loss is an image that the last exit has right and its own exit
    wrong. With probability `confidence` over the images, new ones of the same kind have no larger risk.

    Args:
        table: of images that nothing is reported on.
        risk: in (0, 1).
        confidence: in (0, 1).
        criterion: of the scores.

    Raises:
        RecipeError: when there are too few images for such a promise, with the number that it needs.
    """
    family, testing = Family.of(table.scores[:, ::2], criterion), table.every_second(1)
    count = testing.scores.shape[1]
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - risk))
    if count < needed:
        raise RecipeError(
            f"risk {risk} with confidence {confidence} needs at least {2 * needed} images to solve "
            f"thresholds on, got {table.scores.shape[1]}; give more validation images, or a larger risk"
        )
    chosen = torch.full_like(family.thresholds[-1], torch.inf)
    for row in family.thresholds.flip(0):
        exits = first_exits(testing.scores, row).unsqueeze(0)
        lost = int((testing.correct[-1] & ~testing.correct.gather(0, exits)[0]).sum())
        if binom.cdf(lost, count, risk) > 1 - confidence:
            break
        chosen = row
    return between_scores(table.scores, chosen, criterion)
