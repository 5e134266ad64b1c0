"""Cascades of whole networks: a cheap network answers, a dearer one is asked about what it is unsure of.

Nothing is trained: members are networks that somebody has trained, and the model `cascade` holds them. Images
leave at the end of the first member that is certain enough (Wang et al., "Wisdom of Committees", ICLR 2022;
Lebovitz et al., "Efficient Inference With Model Cascades", TMLR 2023); thresholds are solved afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sidestep.methods.method import Method
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeConfig:
    """A cascade has no settings besides its members, which are those of the model."""


def _router(network: Any, settings: CascadeConfig) -> None:
    """Return None: members bring their routers."""
    return


def _network(network: DynamicNetwork, router: Router | None) -> DynamicNetwork:
    """Return the cascade as it was built."""
    return network


CASCADE = Method(
    name="cascade",
    summary="cascades of trained networks (ICLR 2022): a dearer one is asked where a cheap one is unsure",
    settings=CascadeConfig,
    router=_router,
    network=_network,
    model="cascade",
)
