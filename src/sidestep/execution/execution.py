"""The ways to run a network, by name."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.errors import RecipeError
from sidestep.execution.gathered import gathered
from sidestep.layers.unit import Execute
from sidestep.networks.network import masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A way to run what was decided.

    Attributes:
        name: as commands and reports say it.
        execute: how units are run.
        cascade: whether images that have left at an exit are computed no further.
    """

    name: str
    execute: Execute
    cascade: bool = False


MASKED = Execution(name="masked", execute=masked)

_ALL = (
    MASKED,
    Execution(name="gathered", execute=gathered),
    Execution(name="cascade", execute=gathered, cascade=True),
)
EXECUTIONS = {execution.name: execution for execution in _ALL}


def execution_of(name: str) -> Execution:
    """Return the execution of that name.

    Raises:
        RecipeError: when there is none.
    """
    if name not in EXECUTIONS:
        raise RecipeError(f"execution must be one of {', '.join(EXECUTIONS)}, got {name!r}")
    return EXECUTIONS[name]
