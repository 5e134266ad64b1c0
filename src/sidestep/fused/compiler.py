"""torch's compiler: the private parts of it that this package uses are used here alone.

Tested with torch 2.11 and 2.14; `tests/test_internals.py` names what an upgrade has moved or changed.

- `torch._dynamo.config.recompile_limit`: torch gives up at the ninth shape of a function, and an ImageNet
  network has more. `torch.compile` takes the limit itself only in torch 2.14.
- `torch._inductor.compile`: compiles a graph for one kind of arguments and asks nothing when it is called, as
  `torch.compile` does, whose questions take as long as a small pass.
- names of `torch._inductor.config` in `_OPTIONS`: `torch.compile(options=...)` documents no other list.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sidestep.execution.execution import blend, execute
from sidestep.layers.unit import Unit

_SHAPES = 64
_lock = threading.Lock()
_users, _before = 0, 0
_OPTIONS: dict[str, Any] = {
    # Maps are read again rather than stored in between: without these the compiler writes float32 copies.
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    "realize_opcount_threshold": 1000,
    # Products and sums in one instruction, rounded once.
    "cpp.enable_floating_point_contract_flag": "fast",
}


@contextmanager
def many_shapes() -> Iterator[None]:
    """Let a compiled function have a program for each of many shapes, inside.

    Trainings in several threads overlap: the first one changes the setting, and the last one changes it back.
    """
    global _users, _before
    with _lock:
        if not _users:
            _before = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(_SHAPES, _before)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                torch._dynamo.config.recompile_limit = _before


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function's programs behind one call.

    Args:
        function: takes tensors, and constants behind them, of which it depends on nothing else; returns
            tensors.
    """
    return _Programs(function)


class _Programs:
    """A function, and a program for every kind of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._of_kind: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        constants = arguments[len(tensors) :]
        kind = *constants, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
        if kind not in self._of_kind:
            self._of_kind[kind] = self._compile(tensors, constants)
        return self._of_kind[kind](*tensors)

    def _compile(self, tensors: list[Tensor], constants: tuple[Any, ...]) -> Callable[..., Any]:
        def function(*tensors: Tensor) -> Any:
            return self.function(*tensors, *constants)

        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            graph = make_fx(function, tracing_mode="fake")(*tensors)
            program: Callable[..., Any] = torch._inductor.compile(graph, [*tensors], _OPTIONS)
        return program


def whole(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    """Return what `blend` does, by a program for every kind of unit and shape."""
    out: Tensor = _whole()(unit, x, weights)
    return out


@cache
def _whole() -> Callable[[Unit, Tensor, Tensor], Tensor]:
    return torch.compile(blend, dynamic=False)


def whole_execution(unit: Unit, x: Tensor) -> Tensor:
    """Return the output of an executed unit, by a program for every kind of unit and shape."""
    out: Tensor = _whole_execution()(unit, x)
    return out


@cache
def _whole_execution() -> Callable[[Unit, Tensor], Tensor]:
    return torch.compile(execute, dynamic=False)


def compiler_works() -> bool:
    """Return whether torch can compile for this CPU: a compiler or Python's headers may be missing."""
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x + 1
