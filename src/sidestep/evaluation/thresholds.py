"""Early exits on a set of images: anytime and budgeted accuracy, and thresholds that meet a budget."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.routing.exit_rule import CRITERIA, first_exits
from sidestep.types import Unit

# The released codes sweep q from 0.05 to 1.95. Wider, so that every budget is reached between all images that
# leave at the first exit and none that leaves before the last.
_SMALLEST_Q, _LARGEST_Q, _NUM_Q = 1e-3, 1e3, 241
_BISECTIONS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitTable:
    """What all exits of a network say about a set of images, everything computed.

    Attributes:
        scores: (E, N) certainty of every exit.
        correct: (E, N) booleans, whether its class is right.
        macs: (E, N) MACs of every image that leaves there, in float64.
        ms: (E, N) its milliseconds by a latency book, or None without one.
    """

    scores: Tensor
    correct: Tensor
    macs: Tensor
    ms: Tensor | None = None

    def leaving(self, thresholds: Tensor) -> ExitPoint:
        """Return accuracy and cost when images leave by (E - 1,) thresholds."""
        return self.at(first_exits(self.scores, thresholds))

    def at(self, exits: Tensor) -> ExitPoint:
        """Return accuracy and cost when every image leaves at its (N,) exit."""
        rows = exits.unsqueeze(0)
        return ExitPoint(
            accuracy=self.correct.gather(0, rows).double().mean().item(),
            macs=self.macs.gather(0, rows).mean().item(),
            ms=None if self.ms is None else self.ms.gather(0, rows).mean().item(),
            exit_rates=torch.bincount(exits, minlength=len(self.scores)).div(len(exits)).tolist(),
        )

    def every_second(self, first: int) -> ExitTable:
        """Return the same for every second image, from the first or the second one on."""
        return ExitTable(
            scores=self.scores[:, first::2],
            correct=self.correct[:, first::2],
            macs=self.macs[:, first::2],
            ms=None if self.ms is None else self.ms[:, first::2],
        )

    def anytime(self) -> list[ExitPoint]:
        """Return accuracy and cost when all images leave at the first exit, at the second, and so on."""
        num_exits, num_images = self.scores.shape
        return [self.at(torch.full((num_images,), exit)) for exit in range(num_exits)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPoint:
    """One point of a curve of accuracy over cost.

    Attributes:
        accuracy: top-1, in [0, 1].
        macs: mean MACs per image.
        exit_rates: share of images that leave at every exit.
        ms: mean milliseconds per image by a latency book, or None without one.
    """

    accuracy: float
    macs: float
    exit_rates: list[float]
    ms: float | None = None

    def cost(self, unit: Unit) -> float:
        """Return the mean cost per image in a unit.

        Raises:
            RecipeError: for milliseconds without a latency book.
        """
        if unit == "MACs":
            return self.macs
        if self.ms is None:
            raise RecipeError(
                "milliseconds need a latency book; measure one with `sidestep bench RUN --book`"
            )
        return self.ms


def geometric_shares(num_exits: int, q: float) -> Tensor:
    """Return (E,) shares f_k ~ q^k of images that are to leave at every exit, in float64 (MSDNet, RANet).

    Below 1 early exits are favoured, above 1 late ones.

    Args:
        num_exits: E.
        q: above 0.
    """
    # From the largest term, so that no power overflows.
    powers = torch.arange(num_exits, dtype=torch.float64) * torch.log(torch.tensor(q, dtype=torch.float64))
    return powers.softmax(dim=0)


def solve_thresholds(scores: Tensor, shares: Tensor) -> Tensor:
    """Return (E - 1,) thresholds with which about the given shares of images leave at every exit.

    Exit by exit, T_k is the n_k-th largest score among images that have not left, with n_k = floor(N f_k); it
    is infinite where n_k is 0 or fewer images are left (MSDNet's and RANet's rule). Images with equal scores
    leave together, so that more may leave than asked.

    Args:
        scores: (E, N) on images that nothing is reported on.
        shares: (E,) that sum to 1.
    """
    here = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    thresholds = []
    for exit_scores, share in zip(scores[:-1], shares[:-1].tolist(), strict=True):
        wanted, left = int(scores.shape[1] * share), int(here.sum())
        reached = torch.inf
        if 0 < wanted <= left:
            reached = exit_scores[here].kthvalue(left - wanted + 1).values.item()
        thresholds.append(reached)
        here = here & (exit_scores < reached)
    return torch.tensor(thresholds, dtype=scores.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Thresholds for every budget: a path of (E - 1,) thresholds, each at least as large as the one before.

    The thresholds of geometric shares alone are no such path: at a middle exit they are infinite for small q,
    where nobody is to leave there, fall, and rise again. Every threshold is therefore lowered to the smallest
    one that any larger q asks for. So a larger budget never lets an image leave earlier.

    Attributes:
        thresholds: (Q, E - 1), finite.
    """

    thresholds: Tensor

    @classmethod
    def of(cls, scores: Tensor, criterion: str) -> Family:
        """Return the family of a criterion, on (E, N) scores."""
        return cls.shared(scores) if CRITERIA[criterion].shares_threshold else cls.geometric(scores)

    @classmethod
    def geometric(cls, scores: Tensor) -> Family:
        """Return the family of geometric shares on (E, N) scores."""
        exponents = torch.linspace(0, 1, _NUM_Q, dtype=torch.float64)
        sweep = _SMALLEST_Q * (_LARGEST_Q / _SMALLEST_Q) ** exponents
        rows = [solve_thresholds(scores, geometric_shares(len(scores), q)) for q in sweep.tolist()]
        # Beyond every score instead of infinite, so that two rows have others between them.
        beyond = scores.max() + 1e-3
        path = torch.stack(rows).clamp(max=beyond.item()).flip(0).cummin(dim=0).values.flip(0)
        none, all_images = torch.full_like(path[:1], beyond.item()), path[:1].clone()
        all_images[:, 0] = scores[0].min()
        return cls(thresholds=torch.cat([all_images, path, none]))

    @classmethod
    def shared(cls, scores: Tensor) -> Family:
        """Return the family of one threshold for all exits, on (E, N) scores: the only one for patience."""
        levels = torch.unique(scores[:-1])
        levels = torch.cat([levels, levels[-1:] + 1])
        return cls(thresholds=levels.unsqueeze(1).expand(-1, len(scores) - 1))

    def at(self, place: float) -> Tensor:
        """Return the (E - 1,) thresholds at a place in [0, Q - 1], between rows where it is no integer."""
        below = min(int(place), len(self.thresholds) - 2)
        return torch.lerp(self.thresholds[below], self.thresholds[below + 1], place - below)


def thresholds_for_budget(
    table: ExitTable, budget: float, criterion: str, *, unit: Unit = "MACs", family: Family | None = None
) -> Tensor:
    """Return the (E - 1,) thresholds of the dearest member of a family that costs at most a budget.

    Found by bisection, since the mean cost never falls along a family.

    Args:
        table: of images that nothing is reported on (the validation split).
        budget: largest mean cost per image.
        criterion: of the scores; some share one threshold (patience), others have one for each exit.
        unit: of the budget.
        family: of the table's scores, for many budgets; None makes it.

    Raises:
        RecipeError: when even the cheapest member costs more, or the budget exceeds the last exit's cost.
    """
    shared = CRITERIA[criterion].shares_threshold
    family = family or Family.of(table.scores, criterion)
    last = len(family.thresholds) - 1
    cheapest, dearest = (table.leaving(family.at(place)).cost(unit) for place in (0, last))
    if not cheapest <= budget <= dearest:
        raise RecipeError(
            f"budget must be between {cheapest:.4g} and {dearest:.4g} {unit} per image, which leaving at the "
            f"first and at the last exit costs, got {budget:.4g}"
        )

    def exceeds(place: float) -> bool:
        return table.leaving(family.at(place)).cost(unit) > budget

    row = bisect_left(range(1, last + 1), True, key=exceeds)
    if shared or row == last:
        return between_scores(table.scores, family.at(row), criterion)
    low, high = float(row), float(row + 1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    return between_scores(table.scores, family.at(low), criterion)


def between_scores(scores: Tensor, thresholds: Tensor, criterion: str) -> Tensor:
    """Return (E - 1,) thresholds by which the same images leave, halfway between two scores of every exit.

    A threshold that is the score of an image splits hairs: with the rounding of another runtime, or of
    another size of batch, that image would leave elsewhere. Levels that exits share (patience) stay.

    Args:
        scores: (E, N) of the images that the thresholds were solved on.
        thresholds: (E - 1,).
        criterion: of the scores.
    """
    if CRITERIA[criterion].shares_threshold:
        return thresholds
    moved = []
    for exit_scores, threshold in zip(scores[:-1], thresholds.tolist(), strict=True):
        leaving = exit_scores >= threshold
        middle = threshold
        if leaving.any() and not leaving.all():
            middle = (exit_scores[leaving].min().item() + exit_scores[~leaving].max().item()) / 2
        # Between neighbours of a precision there is nothing.
        same = torch.equal(exit_scores >= torch.tensor(middle, dtype=scores.dtype), leaving)
        moved.append(middle if same else threshold)
    return torch.tensor(moved, dtype=thresholds.dtype)
