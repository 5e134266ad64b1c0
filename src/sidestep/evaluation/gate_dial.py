"""Gates set to a budget: the bias that meets it on images, found in few evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.evaluation.budget_points import BudgetPoint
from sidestep.routing.dial import MOST, added
from sidestep.types import Batch, CostModel, Decisions, RoutedOutput

# A cost is near enough to its budget from so far below.
_NEAR = 0.01
_MOST_TRIES = 24
_BISECTIONS = 50
# Of the mean spread of gates: those that say the same of all images move as well, if late.
_LEAST_SPREAD = 0.01


@dataclass(slots=True)
class Logits:
    """Notes what routers say while images are evaluated."""

    rows: list[Tensor] = field(default_factory=list)

    def add(self, output: RoutedOutput, batch: Batch) -> None:
        """Note a batch."""
        if output.decisions.logits is not None:
            self.rows.append(output.decisions.logits.float().cpu())

    def all(self) -> Tensor:
        """Return the (N, L, K) logits of all images."""
        return torch.cat(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSurvey:
    """What gates with biases do on images.

    Attributes:
        point: what comes out; `asked` is the bias.
        logits: (N, L, K) of all images, biases included.
    """

    point: BudgetPoint
    logits: Tensor


def spreads(logits: Tensor) -> list[float]:
    """Return (L) how far apart a unit's gate holds images, over the mean of all units.

    That is the standard deviation of l_last - l_first over images. A bias in these units turns to gates that
    tell images apart before it turns to those that say nearly the same of all.

    Args:
        logits: (N, L, K) without biases; of units without a gate infinite ones.
    """
    margins = (logits[..., -1] - logits[..., 0]).double()
    found = torch.where(margins.isfinite().all(dim=0), margins.std(dim=0, unbiased=False), torch.nan)
    mean = found.nanmean()
    if not mean > 0:
        return [1.0] * logits.shape[1]
    relative: list[float] = (found / mean).nan_to_num(1.0).clamp_min(_LEAST_SPREAD).tolist()
    return relative


class GateDial:
    """Solves biases for budgets on one set of images.

    What gates say of an image depends on the blocks before them, so that only a run of the network tells what
    a bias costs. Between two runs the logits of the nearest one predict it: with features as they were, an
    image executes a unit where its own logits and the bias say so. The bias that meets the budget by that
    is run next, and replaces the prediction; where it leaves the bracket of what has been run, its middle is.
    For routers that look at the image alone (BlockDrop) the first prediction is exact.

    Args:
        measure: (L) biases, and the bias that they are called -> what comes out.
        prices: price list of the network, in MACs or milliseconds.
        per_unit: whether every unit has the bias times the spread of its gate, see `spreads`, instead of all
            the same.
    """

    def __init__(
        self,
        measure: Callable[[Sequence[float], float], GateSurvey],
        prices: CostModel,
        *,
        per_unit: bool = False,
    ) -> None:
        self.prices, self.scales, self._measure = prices, torch.ones(len(prices.options)), measure
        self.seen: list[GateSurvey] = []
        logits = self._run(0.0).logits
        if per_unit:
            self.scales = torch.tensor(spreads(logits))
        # Whatever the features are, all gates that can say otherwise do.
        self.least, self.most = (self._predicted(logits, bias) for bias in (-MOST, MOST))
        if not self.least < self.most:
            raise RecipeError(
                "a budget by biases needs gates that can decide otherwise, and here every unit is decided "
                "for good (fixed_path, random_drop); train a method with gates, or exits"
            )

    def biases(self, asked: float) -> list[float]:
        """Return the (L) biases of all units."""
        found: list[float] = (asked * self.scales).tolist()
        return found

    def meet(self, budget: float) -> BudgetPoint:
        """Return the dearest point that was found within a budget, and near it where gates allow that.

        Args:
            budget: largest mean price per image, in the unit of the price list.

        Raises:
            RecipeError: for a budget below that of executing as little as gates can.
        """
        unit = self.prices.unit
        if budget < self.least * (1 - 1e-4):
            raise RecipeError(
                f"budget must be at least {self.least:.4g} {unit} per image here, with every block skipped "
                f"that can be ({self.least / self.prices.full:.4f} of the full network), got {budget:.4g}"
            )
        if budget >= self.most:
            return self._run(MOST).point
        if budget <= self.least * (1 + _NEAR):
            return self._run(-MOST).point
        for _ in range(_MOST_TRIES):
            best = self._within(budget)
            if best is not None and best.price(unit) >= (1 - _NEAR) * budget:
                return best
            proposal = self._proposal(budget)
            if any(survey.point.asked == proposal for survey in self.seen):
                break  # gates cannot be parted more finely
            self._run(proposal)
        return self._within(budget) or self._run(-MOST).point

    def evenly(self, count: int) -> list[float]:
        """Return evenly spaced budgets from the cheapest to the dearest that gates allow, rising."""
        return torch.linspace(self.least, self.most, count, dtype=torch.float64).tolist()

    def _run(self, asked: float) -> GateSurvey:
        for survey in self.seen:
            if survey.point.asked == asked:
                return survey
        self.seen.append(self._measure(self.biases(asked), asked))
        return self.seen[-1]

    def _within(self, budget: float) -> BudgetPoint | None:
        """Return the dearest point so far that costs no more than a budget.

        Taken among all of them: a larger budget never gets a cheaper one, though the cost of a network may
        fall here and there where the bias rises.
        """
        fit = [survey.point for survey in self.seen if self._price(survey) <= budget]
        return max(fit, key=lambda point: point.price(self.prices.unit)) if fit else None

    def _price(self, survey: GateSurvey) -> float:
        return survey.point.price(self.prices.unit)

    def _proposal(self, budget: float) -> float:
        """Return the bias to run next."""
        known = [survey for survey in self.seen if abs(survey.point.asked) < MOST]
        nearest = min(known, key=lambda survey: abs(self._price(survey) - budget))
        # On a side where nothing was run yet the bracket ends where all gates have changed their mind. The
        # middle between a bias and MOST would shut or open all of them.
        reach, tried = self._reach(nearest.logits), [survey.point.asked for survey in known]
        low = max((s.point.asked for s in known if self._price(s) <= budget), default=min(tried) - reach)
        high = min(
            (s.point.asked for s in known if self._price(s) > budget and s.point.asked > low),
            default=max(tried) + reach,
        )
        asked = nearest.point.asked + self._step(nearest.logits, (1 - _NEAR / 2) * budget)
        return asked if low < asked < high else (low + high) / 2

    def _reach(self, logits: Tensor) -> float:
        """Return by how much a bias has to move so that all gates that can change their mind have done so."""
        apart = (logits.amax(dim=2) - logits.amin(dim=2)).double() / self.scales.double()
        return float(apart[apart.isfinite()].max()) * (logits.shape[2] - 1) + 1

    def _step(self, logits: Tensor, budget: float) -> float:
        """Return what the bias has to rise by, as far as the logits of one run predict it."""
        beyond = self._reach(logits)
        low, high = -beyond, beyond
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._predicted(logits, middle) <= budget else (low, middle)
        return low

    def _predicted(self, logits: Tensor, step: float) -> float:
        """Return the mean price where all biases rise by a step, and features stay as they are."""
        biased = logits + added(step * self.scales, logits.shape[2])
        chosen = torch.zeros_like(biased).scatter_(2, biased.argmax(dim=2, keepdim=True), 1.0)
        return self.prices.per_sample(Decisions(weights=chosen)).double().mean().item()
