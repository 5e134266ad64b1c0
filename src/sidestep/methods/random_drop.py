"""Random dropping: units are executed by chance, the control that every router has to beat.

With `decay: linear` the keep rate falls from 1 at the first unit, as in stochastic depth (Huang et al. 2016);
unlike there, units are dropped in evaluation too, so that the cost is the same. Stochastic depth itself, with
the whole network at the end, is a phase with `paths: uniform`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.methods.method import Method
from sidestep.routing.chance import ChanceRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDropConfig:
    """Settings of random dropping.

    Args:
        keep_rate: mean probability of executing a unit.
        decay: "none" gives all units the same, "linear" falls from 1 to 2 x keep_rate - 1.
        seed: of the dice.
    """

    keep_rate: float = 0.6
    decay: Literal["none", "linear"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        least = 0.5 if self.decay == "linear" else 0.0
        if not least <= self.keep_rate <= 1:
            raise RecipeError(
                f"keep_rate must be in [{least:g}, 1] with decay {self.decay!r}, got {self.keep_rate}"
            )

    def rates(self, num_units: int) -> list[float]:
        """Return the keep rate of every unit."""
        if self.decay == "none" or num_units == 1:
            return [self.keep_rate] * num_units
        step = 2 * (1 - self.keep_rate) / (num_units - 1)
        return [1 - step * unit for unit in range(num_units)]


def _router(backbone: Backbone, settings: RandomDropConfig) -> ChanceRouter:
    return ChanceRouter(settings.rates(len(backbone.units)), seed=settings.seed)


RANDOM_DROP = Method(
    name="random_drop",
    summary="units dropped by chance, in training and evaluation: the control at equal cost",
    settings=RandomDropConfig,
    router=_router,
)
