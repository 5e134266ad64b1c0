"""Masked execution whose units are compiled, for training."""

from __future__ import annotations

import torch
from torch import Tensor

from sidestep.backbones.halting import HaltingNetwork
from sidestep.backbones.network import DynamicNetwork, masked
from sidestep.errors import RecipeError
from sidestep.layers.fused import fused_passes
from sidestep.layers.unit import Execute, Unit

_SHAPES = 64


def compile_units(network: DynamicNetwork) -> Execute:
    """Return the masked execution with torch.compile behind it, for training: a program for every shape.

    A whole ResNet-110 takes minutes to compile and its units, of which few differ in shape, seconds. On a CPU
    residual blocks keep torch's convolutions and have the rest compiled into fused passes: a compiled unit
    takes longer.

    Args:
        network: what it is for.

    Raises:
        RecipeError: for a network that does not run its units through an execution.
    """
    if network.router is None or isinstance(network, HaltingNetwork):
        raise RecipeError(
            "compile needs a network whose routers decide about units, got one that is static, halts or has "
            "exits alone; drop it"
        )
    # By default torch gives up at the ninth shape, and an ImageNet network has more.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    compiled: Execute = torch.compile(masked, dynamic=False)

    def execute(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        if not (x.is_cpu and unit.fuses):
            return compiled(unit, x, weights)
        with fused_passes():
            return masked(unit, x, weights)

    return execute
