"""Cascades of whole networks: a cheap network answers, a dearer one is asked about what it is unsure of.

Nothing is trained: members are networks that somebody has trained, and the model `cascade` holds them. Images
leave at the end of the first member that is certain enough (Wang et al., "Wisdom of Committees", ICLR 2022;
Lebovitz et al., "Efficient Inference With Model Cascades", TMLR 2023); thresholds are solved afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.methods.method import Method, as_built, no_router


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeConfig:
    """A cascade has no settings besides its members, which are those of the model."""


CASCADE = Method(
    name="cascade",
    summary="cascades of trained networks (ICLR 2022): a dearer one is asked where a cheap one is unsure",
    settings=CascadeConfig,
    router=no_router,
    network=as_built,
    model="cascade",
)
