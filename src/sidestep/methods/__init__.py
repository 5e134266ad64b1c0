"""Methods by name; each file reads like one paper's method section."""

from __future__ import annotations

from typing import Any

from sidestep.methods.act import ACT, SACT
from sidestep.methods.blockdrop import BLOCKDROP
from sidestep.methods.cascade import CASCADE
from sidestep.methods.certainty import CERTAINTY
from sidestep.methods.codinet import CODINET
from sidestep.methods.convnet_aig import CONVNET_AIG
from sidestep.methods.early_exit import MSDNET, RANET
from sidestep.methods.fixed_path import FIXED_PATH
from sidestep.methods.method import Method
from sidestep.methods.random_drop import RANDOM_DROP
from sidestep.methods.rdi_net import RDI_NET
from sidestep.methods.skipnet import SKIPNET
from sidestep.methods.static import STATIC
from sidestep.registry import Registry

_ALL = (
    RDI_NET,
    CONVNET_AIG,
    CODINET,
    SKIPNET,
    BLOCKDROP,
    ACT,
    SACT,
    RANET,
    MSDNET,
    CERTAINTY,
    CASCADE,
    FIXED_PATH,
    RANDOM_DROP,
    STATIC,
)

METHODS: Registry[Method[Any]] = Registry("method", _ALL)


def register_method(method: Method[Any]) -> None:
    """Let recipes name a method of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    METHODS.add(method)


__all__ = ["METHODS", "Method", "register_method"]
