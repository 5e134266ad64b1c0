"""A fixed subset of blocks for every image: what a dynamic network of equal cost has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.methods.method import Method
from sidestep.routing.router import ConstantRouter


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPathConfig:
    """Settings of the fixed subset.

    Args:
        path: one character per unit, 1 executes and 0 skips; spaces may mark stages ("10101 10101 11101").
    """

    path: str

    def __post_init__(self) -> None:
        if not self.units or set(self.units) - {"0", "1"}:
            raise RecipeError(
                f"path must be made of 0 and 1, one per unit, got {self.path!r}; "
                "for example '10101 10101 11101'"
            )

    @property
    def units(self) -> str:
        """Return the path without spaces."""
        return self.path.replace(" ", "")


def _router(backbone: Backbone, settings: FixedPathConfig) -> ConstantRouter:
    if len(settings.units) != len(backbone.units):
        raise RecipeError(
            f"path must name every unit of the network once, got {len(settings.units)} for "
            f"{len(backbone.units)} units: {settings.path!r}"
        )
    return ConstantRouter.keep([float(unit) for unit in settings.units])


FIXED_PATH = Method(
    name="fixed_path",
    summary="the same subset of blocks for every image, the static rival of equal cost",
    settings=FixedPathConfig,
    router=_router,
)
