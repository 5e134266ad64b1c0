"""ACT and SACT: residual stages that stop when they have seen enough (Figurnov et al., CVPR 2017).

The method section of the paper, top to bottom: a halting unit behind every residual unit (`routing.halting`),
the weighted mean of unit outputs as the output of a stage (`backbones.halting`), per image in ACT (Graves
2016) and per position in SACT, and the ponder cost N + R of every stage, weighted by tau. Nothing is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.losses.ponder import ponder_loss
from sidestep.methods.method import OPENERS_RUN, Method, check_maps, check_two_options
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.routing.halting_units import HaltingRouter
from sidestep.types import Batch, CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltingConfig:
    """Settings of ACT and SACT.

    Args:
        tau: weight of the ponder cost; larger is faster. The papers' networks lie between 0.001 and 0.01.
        eps: a stage halts when its scores add up to 1 - eps.
    """

    tau: float = 0.01
    eps: float = 0.01

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise RecipeError(f"tau must be at least 0, got {self.tau}; 0.001 to 0.01 are usual")
        if not 0.0 < self.eps < 1.0:
            raise RecipeError(f"eps must be in (0, 1), got {self.eps}; the papers use 0.01")


def _router(backbone: Backbone, settings: HaltingConfig, *, spatial: bool) -> HaltingRouter:
    name = "sact" if spatial else "act"
    check_two_options(backbone, name)
    check_maps(backbone, f"method {name}")
    units = backbone.units
    return HaltingRouter(
        [unit.in_channels for unit in units],
        [unit.stage for unit in units],
        spatial=spatial,
        eps=settings.eps,
        style=backbone.halting_style,
    )


def _losses(
    output: RoutedOutput, batch: Batch, cost: CostModel, settings: HaltingConfig
) -> dict[str, Tensor]:
    assert output.ponder is not None  # a halting network fills it wherever its own units decide
    return {"ponder": settings.tau * ponder_loss(output.ponder)}


ACT = Method(
    name="act",
    summary="ACT (2016): every stage of a residual network halts per image",
    settings=HaltingConfig,
    router=partial(_router, spatial=False),
    losses=_losses,
    network=HaltingNetwork,
    no_effect=OPENERS_RUN,
)

SACT = replace(
    ACT,
    name="sact",
    summary="SACT (CVPR 2017): every stage of a residual network halts per position",
    router=partial(_router, spatial=True),
)
