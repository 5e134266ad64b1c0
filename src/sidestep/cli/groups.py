"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sidestep.errors import UsageError

if TYPE_CHECKING:
    from sidestep.runs.at_budget import ExitBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Which weights of a run, on which data.

    Attributes:
        checkpoint: of which epoch the weights are.
        source: where the data lies now, if not where the recipe says.
    """

    checkpoint: Literal["best", "last"] = "best"
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """What a network may cost, and where images leave exits for that.

    Attributes:
        budget: mean MACs, as a fraction of the full network's.
        budget_gflops: the same in GFLOPs of 2 x MACs, instead.
        ms: mean milliseconds per image by a latency book, instead.
        book: latency book of the run (default: its only one), or a file; in `cascade` also a runtime.
        max_drop: points of accuracy below the last exit, instead.
        risk: largest share of images that leave wrong where the last exit is right, instead.
        confidence: with which the risk is kept (default: 0.95).
        criterion: confidence, margin, entropy, patience or agreement of exits, or a registered one.
        no_temperatures: fit no temperatures of exits.
        per_unit: a bias for every block's gate, not one for all.
    """

    budget: float | None = None
    budget_gflops: float | None = None
    ms: float | None = None
    book: str | None = None
    max_drop: float | None = None
    risk: float | None = None
    confidence: float | None = None
    criterion: str = "confidence"
    no_temperatures: bool = False
    per_unit: bool = False

    @property
    def has_budget(self) -> bool:
        """Return whether one was given."""
        budgets = (self.budget, self.budget_gflops, self.ms, self.max_drop, self.risk)
        return any(each is not None for each in budgets)

    def check_use(self) -> None:
        """Refuse options that have no effect because no budget was given.

        Raises:
            UsageError: naming the option.
        """
        idle = {
            "--no-temperatures": self.no_temperatures,
            "--per-unit": self.per_unit,
            f"--criterion {self.criterion}": self.criterion != "confidence",
            f"--confidence {self.confidence}": self.confidence is not None,
        }
        if not self.has_budget and any(idle.values()):
            given = next(name for name, used in idle.items() if used)
            raise UsageError(
                f"{given} has no effect without a budget; add --budget, or calibrate the run with it"
            )

    def exit_budget(self) -> ExitBudget:
        """Return the budget as Python's functions take it.

        Raises:
            RecipeError: when none or both were given.
        """
        from sidestep.runs.at_budget import ExitBudget

        return ExitBudget(
            fraction=self.budget,
            gflops=self.budget_gflops,
            ms=self.ms,
            max_drop=self.max_drop,
            risk=self.risk,
            confidence=self.confidence,
            criterion=self.criterion,
            scale=not self.no_temperatures,
            per_unit=self.per_unit,
        )
