"""The static network: no router, every block executed. The baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.backbones.backbone import Backbone
from sidestep.methods.method import OPENERS_RUN, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig:
    """The static network has no settings."""


def _router(backbone: Backbone, settings: StaticConfig) -> None:
    return


STATIC = Method(
    name="static",
    summary="the backbone itself, every block executed",
    settings=StaticConfig,
    router=_router,
    no_effect=OPENERS_RUN,
)
