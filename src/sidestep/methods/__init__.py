"""Methods by name; each file reads like one paper's method section."""

from __future__ import annotations

from typing import Any

from sidestep.errors import RecipeError
from sidestep.methods.act import ACT, SACT
from sidestep.methods.blockdrop import BLOCKDROP
from sidestep.methods.codinet import CODINET
from sidestep.methods.convnet_aig import CONVNET_AIG
from sidestep.methods.early_exit import MSDNET, RANET
from sidestep.methods.fixed_path import FIXED_PATH
from sidestep.methods.method import Method
from sidestep.methods.random_drop import RANDOM_DROP
from sidestep.methods.rdi_net import RDI_NET
from sidestep.methods.skipnet import SKIPNET
from sidestep.methods.static import STATIC

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
    FIXED_PATH,
    RANDOM_DROP,
    STATIC,
)

METHODS: dict[str, Method[Any]] = {method.name: method for method in _ALL}


def register(method: Method[Any]) -> None:
    """Let recipes name a method of your own; see docs/extending.md.

    Raises:
        RecipeError: when the name is taken.
    """
    if method.name in METHODS:
        raise RecipeError(f"method {method.name} is there already; choose another name")
    METHODS[method.name] = method


__all__ = ["METHODS", "Method", "register"]
