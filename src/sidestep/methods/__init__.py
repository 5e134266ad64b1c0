"""Methods by name; each file reads like one paper's method section."""

from __future__ import annotations

from typing import Any

from sidestep.methods.fixed_path import FIXED_PATH
from sidestep.methods.method import Method
from sidestep.methods.rdi_net import RDI_NET
from sidestep.methods.static import STATIC

METHODS: dict[str, Method[Any]] = {method.name: method for method in (RDI_NET, FIXED_PATH, STATIC)}

__all__ = ["METHODS", "Method"]
