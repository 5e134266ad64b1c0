"""Functions of tensors as compiled programs, for what training repeats at every unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

_wanted: ContextVar[bool] = ContextVar("fused passes", default=False)

_OPTIONS: dict[str, Any] = {
    # Maps are read again rather than stored in between: without these the compiler writes float32 copies.
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    "realize_opcount_threshold": 1000,
    # Products and sums in one instruction, rounded once.
    "cpp.enable_floating_point_contract_flag": "fast",
}


@contextmanager
def fused_passes() -> Iterator[None]:
    """Compile what layers and routers can fuse, where that is possible, while this is open in this thread."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def programs_wanted(x: Tensor) -> bool:
    """Return whether operations on x should run as compiled programs: on a CPU, where it was asked for."""
    # First: what compiles a whole unit must not look at anything below.
    return not torch.compiler.is_compiling() and _wanted.get() and x.is_cpu


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function's programs behind one call.

    Args:
        function: takes tensors, and constants behind them, of which it depends on nothing else; returns
            tensors.
    """
    return _Programs(function)


class _Programs:
    """A function, and a program for every kind of arguments.

    `torch.compile` would do, but asks more, and with every call, which takes as long as a small pass.
    """

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
