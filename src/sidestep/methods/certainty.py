"""Gates by certainty: units behind an early exit are executed for the images of which it is least certain.

A gate that is learnt has a gradient from the images that it executes alone, and these need not become the
ones that need the unit. Here nothing is learnt about whom to execute: of every batch a
unit executes the share of images of which the last early exit in front of it is least certain, and in
evaluation those above a running quantile (`routing.share`). Images do not leave at exits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sidestep.backbones.backbone import Backbone
from sidestep.methods.method import Method, check_two_options, named_once
from sidestep.routing.certainty_router import CertaintyRouter
from sidestep.routing.share import ShareConfig, ShareRouter, check_share


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintyConfig:
    """Settings of gates by certainty.

    Args:
        shares: of every unit in order: 1 always executes it, 0 never does, and what lies between needs an
            early exit in front (`model.exits`).
        closing: how far shares have moved from 1 to what they are, for ramps; those of 0 and 1 stay.
        memory: of the running quantile, per step.
    """

    shares: list[float] = field(default_factory=list)
    closing: float = 1.0
    memory: float = 0.99

    def __post_init__(self) -> None:
        check_share(ShareConfig(shares=self.shares, memory=self.memory), self.closing, used=True)


def _router(backbone: Backbone, settings: CertaintyConfig) -> ShareRouter:
    check_two_options(backbone, "certainty")
    shares = named_once("shares", settings.shares, len(backbone.units))
    config = ShareConfig(shares=shares, memory=settings.memory)
    gated = [unit for unit in range(len(shares)) if unit not in config.settled]
    return ShareRouter(CertaintyRouter(gated), len(shares), lambda now: shares, config)


CERTAINTY = Method(
    name="certainty",
    summary="gates by certainty: units run for images of which the last early exit is least certain",
    settings=CertaintyConfig,
    router=_router,
)
