"""How the units of a network are run in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric import Fabric
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.execution.execution import Execution
from sidestep.fused.blocks import cheap_mean, execute_compiled, has_compiled_passes, run_by_hand, run_compiled
from sidestep.fused.compiler import compiler_works, many_shapes, whole, whole_execution
from sidestep.layers.pool import averaging_by
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork

# MACs of all forward passes of a training from which compiled passes pay on a CPU: some ten minutes on two
# cores, for a minute at the start.
_PAYS_FROM = 2e13


def _run(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    if unit.num_options > 2:
        # Compiled whole, a BatchNorm that two options run overwrites averages that its gradient needs.
        return run_by_hand(unit, x, weights)
    return run_compiled(unit, x, weights, otherwise=whole) if x.is_cpu else whole(unit, x, weights)


def _execute(unit: Unit, x: Tensor) -> Tensor:
    return execute_compiled(unit, x) if x.is_cpu and has_compiled_passes(unit) else whole_execution(unit, x)


by_hand = Execution(name="by hand", run=run_by_hand, computes_all=True)
compiled = Execution(name="compiled", run=_run, computes_all=True, execute=_execute)


@contextmanager
def training_execution(
    network: DynamicNetwork, wanted: bool | None, *, macs: float, fabric: Fabric
) -> Iterator[Execution]:
    """Yield how the units of a network are run in training: `by_hand` or `compiled`.

    While it is open, layers and routers take means over space by hand.

    A whole ResNet-110 takes minutes to compile and its units, of which few differ in shape, seconds. On a CPU
    residual blocks keep torch's convolutions and have the rest compiled into fused passes: a block that is
    compiled whole takes longer. Units with more than two options are run by hand in either case.

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
        pays = on_cpu and fabric.world_size == 1 and macs >= _PAYS_FROM and network.runs_units
        wanted = pays and _has_compiled_passes(network) and compiler_works()
    elif wanted:
        _check(network, on_cpu)
    with averaging_by(cheap_mean), many_shapes():
        yield compiled if wanted else by_hand


def _check(network: DynamicNetwork, on_cpu: bool) -> None:
    """Refuse compiled units that would change nothing, or that nothing here can compile."""
    if not network.runs_units:
        raise RecipeError(
            "compile needs a network of units that run or not, got one that halts or has exits alone; drop it"
        )
    if on_cpu and not compiler_works():
        raise RecipeError(
            "compile needs a C++ compiler and Python's headers, got none that torch can use; install g++ and "
            "python3-dev, or set it to false"
        )


def _has_compiled_passes(network: DynamicNetwork) -> bool:
    """Return whether all units have compiled passes of their own."""
    return all(has_compiled_passes(unit) for unit in network.units)
