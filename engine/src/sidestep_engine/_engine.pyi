"""The native part, as nanobind sees it: `python -m nanobind.stubgen -m sidestep_engine._engine` writes this.

But for the type of tensors, which may be several.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class PlanError(ValueError):
    pass

class Program:
    pass

NEWEST_VERSION: int = 4

def read_program(version: int, steps: object | None, output: object | None, channels: int, mean: Sequence[float], std: Sequence[float], tensors: Mapping[str, Annotated[NDArray[numpy.generic], dict(order='C', device='cpu', writable=False)]]) -> Program: ...

def operations() -> dict[str, list[str]]: ...

class Engine:
    def __init__(self, program: Program, precision: str, isa: str, num_threads: int, num_cores: int) -> None: ...

    def run_planes(self, images: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)], scores: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], options: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')], exits: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], path_options: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, path_exits: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, thresholds: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, biases: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, done: int) -> None: ...

    def run_bytes(self, images: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)], scores: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], options: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')], exits: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], path_options: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, path_exits: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, thresholds: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, biases: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, done: int) -> None: ...

    def num_classes(self, height: int, width: int) -> int: ...

    def bytes_per_image(self, height: int, width: int) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def num_choices(self) -> int: ...

    @property
    def quantized(self) -> bool: ...

    @property
    def isa(self) -> str: ...

    @property
    def precision(self) -> str: ...
