"""A fixed subset of blocks for every image: what a dynamic network of equal cost has to beat.

Either a path that names every block, or a number of blocks and where they lie: the first ones and evenly
spread ones are the baselines of BlockDrop (CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.methods.method import Method, check_two_options
from sidestep.routing.fixed import FixedRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPathConfig:
    """Settings of the fixed subset: a path, or num_units and order.

    Args:
        path: one character per unit, 1 executes and 0 skips; spaces may mark stages ("10101 10101 11101").
        num_units: how many units are executed, instead of a path.
        order: which ones: the "first" ones of the network, or "spread" evenly over it.
    """

    path: str | None = None
    num_units: int | None = None
    order: Literal["first", "spread"] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.num_units is None):
            raise RecipeError(
                f"path or num_units must be set, and one alone, got {self.path!r} and {self.num_units}; for "
                "example path '10101 10101 11101', or num_units 9 with order first"
            )
        if (self.num_units is None) != (self.order is None):
            raise RecipeError(
                f"order must be set beside num_units and nowhere else, got {self.order!r} with "
                f"num_units {self.num_units}; first or spread belong to a number of units"
            )
        if self.num_units is not None and self.num_units < 0:
            raise RecipeError(f"num_units must be at least 0, got {self.num_units}; 0 skips all")
        if self.path is not None and (not self.path.strip() or set(self.path) - set("01 ")):
            raise RecipeError(
                f"path must be made of 0 and 1, one per unit, got {self.path!r}; "
                "for example '10101 10101 11101'"
            )

    def executed(self, num_units: int) -> list[bool]:
        """Return whether each of a network's units is executed.

        Raises:
            RecipeError: when the path is longer or shorter, or more units are asked for than there are.
        """
        if self.path is not None:
            path = self.path.replace(" ", "")
            if len(path) != num_units:
                raise RecipeError(
                    f"path must name every unit of the network once, got {len(path)} for "
                    f"{num_units} units: {self.path!r}"
                )
            return [unit == "1" for unit in path]
        count = self.num_units or 0
        if count > num_units:
            raise RecipeError(f"num_units must be at most the network's {num_units} units, got {count}")
        if self.order == "first":
            return [unit < count for unit in range(num_units)]
        # One in the middle of each of `count` equal stretches.
        chosen = {(2 * part + 1) * num_units // (2 * count) for part in range(count)}
        return [unit in chosen for unit in range(num_units)]


def _router(backbone: Backbone, settings: FixedPathConfig) -> FixedRouter:
    check_two_options(backbone, "fixed_path")
    return FixedRouter(settings.executed(len(backbone.units)))


FIXED_PATH = Method(
    name="fixed_path",
    summary="the same subset of blocks for every image, the static rival of equal cost",
    settings=FixedPathConfig,
    router=_router,
)
