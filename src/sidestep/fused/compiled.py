"""Masked execution whose units are compiled, for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from lightning_fabric import Fabric
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.execution.execution import Execution, RunUnit, blend, masked
from sidestep.layers.programs import fused_passes
from sidestep.layers.unit import Unit
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.networks.network import DynamicNetwork

_SHAPES = 64
# MACs of all forward passes of a training from which compiled units pay on a CPU: some ten minutes on two
# cores, of which they save a sixth (`benchmarks/training_speed.py`), for a minute at the start.
_PAYS_FROM = 2e13


@contextmanager
def training_execution(
    network: DynamicNetwork, wanted: bool | None, *, macs: float, fabric: Fabric
) -> Iterator[Execution]:
    """Yield how the units of a network are run in training: `masked`, or the same compiled.

    While it is open its routers are compiled too, those that can be.

    Args:
        network: what is trained.
        wanted: whether units are compiled. None leaves it to what is known to pay: a long training of
            residual blocks, on a CPU, in one process, where torch finds a compiler that works.
        macs: of all forward passes of the training, everything executed.
        fabric: launched.

    Raises:
        RecipeError: when compiled units are wanted and the network has none, or nothing can compile them.
    """
    on_cpu = fabric.device.type == "cpu"
    if wanted is None:
        pays = on_cpu and fabric.world_size == 1 and macs >= _PAYS_FROM and _fuses(network)
        wanted = pays and _runs_units(network) and _compiler_works()
    elif wanted and _runs_units(network) and on_cpu and not _compiler_works():
        raise RecipeError(
            "compile needs a C++ compiler and Python's headers, got none that torch can use; install g++ and "
            "python3-dev, or set it to false"
        )
    with compiled_units(network) if wanted else nullcontext(masked) as execution:
        yield execution


def _runs_units(network: DynamicNetwork) -> bool:
    """Return whether a network runs its units through an execution."""
    return network.router is not None and not isinstance(network, HaltingNetwork)


def _fuses(network: DynamicNetwork) -> bool:
    """Return whether all units have fused passes."""
    return all(unit.fuses for unit in network.modules() if isinstance(unit, Unit))


def _compiler_works() -> bool:
    """Return whether torch can compile for this CPU: a compiler or Python's headers may be missing."""
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x + 1


@contextmanager
def compiled_units(network: DynamicNetwork) -> Iterator[Execution]:
    """Yield the masked execution with torch.compile behind it, for training: a program for every shape.

    A whole ResNet-110 takes minutes to compile and its units, of which few differ in shape, seconds. On a CPU
    residual blocks keep torch's convolutions and have the rest compiled into fused passes, as routers have: a
    compiled unit takes longer.

    Args:
        network: what it is for.

    Raises:
        RecipeError: for a network that does not run its units through an execution.
    """
    if not _runs_units(network):
        raise RecipeError(
            "compile needs a network whose routers decide about units, got one that is static, halts or has "
            "exits alone; drop it"
        )
    # By default torch gives up at the ninth shape, and an ImageNet network has more.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    compiled: RunUnit = torch.compile(blend, dynamic=False)

    def run(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        return blend(unit, x, weights) if x.is_cpu and unit.fuses else compiled(unit, x, weights)

    with fused_passes():
        yield Execution(name="compiled", run=run, computes_all=True)
