"""The engine: a plan that is ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sidestep_engine import _engine
from sidestep_engine._engine import PlanError
from sidestep_engine.plan import Plan, read_plan

Precision = Literal["auto", "float32", "bfloat16"]
_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What an engine says about images.

    Attributes:
        logits: (B, C) float32 class scores.
        options: (B, L) int64, the option that ran at every choice, 0 the cheapest; -1 where the image had
            left.
        exits: (B) int64, the exit at which the image left; the number of exits where it stayed to the end.
    """

    logits: np.ndarray
    options: np.ndarray
    exits: np.ndarray


class Engine:
    """Runs a plan. Calls from several threads are safe and take turns; each uses all of the engine's threads.

    Args:
        plan: what to run.
        precision: of maps and weights; "auto" takes bfloat16 where the processor multiplies it natively.
        num_threads: threads that share the work; None takes all processors that this process may use.
        isa: instruction set, one of "base", "avx2", "avx512" and "amx" (bfloat16 only); "auto" for the best
            one.

    Raises:
        PlanError: when the plan or a setting cannot be run.
    """

    def __init__(
        self, plan: Plan, *, precision: Precision = "auto", num_threads: int | None = None, isa: str = "auto"
    ) -> None:
        threads = num_threads if num_threads is not None else _processors()
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
            raise PlanError(f"num_threads must be from 1 to {_MOST_THREADS}, got {num_threads!r}")
        self.plan = plan
        try:
            program = _engine.read_program(
                plan.steps, plan.output, plan.channels, plan.mean, plan.std, plan.tensors
            )
            self._native = _engine.Engine(program, precision, isa, threads)
        except (TypeError, OverflowError) as error:
            raise PlanError(f"a plan's numbers must fit 64 bits and its names be Unicode: {error}") from None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: Precision = "auto",
        num_threads: int | None = None,
        isa: str = "auto",
    ) -> Engine:
        """Return the engine of a plan file.

        Raises:
            PlanError: when the file is no plan, or cannot be run.
            OSError: when the file cannot be read.
        """
        return cls(read_plan(path), precision=precision, num_threads=num_threads, isa=isa)

    @property
    def precision(self) -> str:
        """Return what maps and weights are held in."""
        return self._native.precision

    @property
    def isa(self) -> str:
        """Return the instruction set of the kernels."""
        return self._native.isa

    @property
    def num_threads(self) -> int:
        """Return the number of threads that share the work."""
        return self._native.num_threads

    def memory(self, height: int, width: int) -> dict[str, int]:
        """Return the bytes that weights take, and those of every image on its way, for images of a size.

        Every thread runs up to four images at a time.
        """
        return {
            "weights": self._native.weight_bytes,
            "per_image": self._native.bytes_per_image(height, width),
        }

    def __call__(self, images: np.ndarray) -> Output:
        """Return scores, options and exits of a batch.

        Args:
            images: (B, H, W, C) uint8 pixels, or (B, C, H, W) normalised floats; any B, also 0, and any
                size that the network can take. Arrays that are not contiguous are copied.

        Raises:
            PlanError: for another shape or type.
        """
        images = np.asarray(images)
        if images.ndim != 4:
            raise PlanError(f"images must have four dimensions, got shape {images.shape}")
        run: Callable[..., None]
        if images.dtype == np.uint8:
            run, (height, width) = self._native.run_bytes, images.shape[1:3]
        elif images.dtype.kind == "f":
            run, (height, width) = self._native.run_planes, images.shape[2:]
            images = images.astype(np.float32, copy=False)
        else:
            raise PlanError(f"images must be uint8 pixels or normalised floats, got {images.dtype}")
        count = images.shape[0]
        output = Output(
            logits=np.empty((count, self._native.num_classes(height, width)), dtype=np.float32),
            options=np.empty((count, self._native.num_choices), dtype=np.int64),
            exits=np.empty(count, dtype=np.int64),
        )
        run(np.ascontiguousarray(images), output.logits, output.options, output.exits)
        return output


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return min(os.cpu_count() or 1, _MOST_THREADS)
