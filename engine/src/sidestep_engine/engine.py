"""The engine: a plan that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidestep_engine import _engine
from sidestep_engine._engine import PlanError
from sidestep_engine.plan import Plan, read_plan
from sidestep_engine.processors import available_processors

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
        temperatures: (B) float32, by which that exit divides its logits before it makes them probabilities.
    """

    logits: np.ndarray
    options: np.ndarray
    exits: np.ndarray
    temperatures: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Return (B, C) float32 softmax(logits / temperature): what decides whether an image leaves."""
        scaled = self.logits.astype(np.float64) / self.temperatures[:, None]
        # What is no number stays none: no warning says more than that.
        with np.errstate(invalid="ignore"):
            shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
            shares = shifted / shifted.sum(axis=1, keepdims=True)
        probabilities: np.ndarray = shares.astype(np.float32)
        return probabilities


class Engine:
    """Runs a plan. Calls from several threads are safe and take turns; each uses all of the engine's threads.

    A child that is forked may use its parent's engines, and starts threads of its own; copies, pickled ones
    too, are made of the same plan with the same precision and number of threads.

    Args:
        plan: what to run.
        precision: of maps and weights that the plan does not hold as bytes; "auto" takes bfloat16 where the
            processor multiplies it natively.
        num_threads: threads that share the work; None takes as many as `available_processors` says. More than
            that do not spin while they wait, and take longer.
        isa: instruction set, one of "base", "avx2", "avxvnni" (for bytes; AVX2 for all else), "avx512" and
            "amx" (bfloat16 and bytes only); "auto" for the best one.

    Raises:
        PlanError: when the plan or a setting cannot be run.
    """

    def __init__(
        self, plan: Plan, *, precision: Precision = "auto", num_threads: int | None = None, isa: str = "auto"
    ) -> None:
        processors = available_processors()
        threads = num_threads if num_threads is not None else min(processors, _MOST_THREADS)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
            raise PlanError(f"num_threads must be from 1 to {_MOST_THREADS}, got {num_threads!r}")
        self.plan = plan
        try:
            program = _engine.read_program(
                plan.version, plan.steps, plan.output, plan.channels, plan.mean, plan.std, plan.tensors
            )
            self._native = _engine.Engine(program, precision, isa, threads, processors)
            self._temperatures = np.array([*_temperatures(plan), plan.temperature], dtype=np.float32)
        except (TypeError, OverflowError) as error:
            raise PlanError(f"a plan's numbers must fit 64 bits and its names be Unicode: {error}") from None
        self._asked_isa = isa

    def __reduce__(self) -> tuple[Any, ...]:
        return _engine_of, (self.plan, self.precision, self.num_threads, self._asked_isa)

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
        """Return what maps and weights are held in that the plan does not hold as bytes."""
        return self._native.precision

    @property
    def quantized(self) -> bool:
        """Return whether the plan holds maps or weights as bytes."""
        return self._native.quantized

    @property
    def isa(self) -> str:
        """Return the instruction set of the kernels, of those for bytes where the plan has some."""
        return self._native.isa

    @property
    def num_threads(self) -> int:
        """Return the number of threads that share the work."""
        return self._native.num_threads

    def memory(self, height: int, width: int) -> dict[str, int]:
        """Return the bytes that weights take, and those of every image on its way, for images of a size.

        Every thread runs up to 4 images at a time, or as many small ones, up to 16, as its cache keeps.
        """
        return {
            "weights": self._native.weight_bytes,
            "per_image": self._native.bytes_per_image(height, width),
        }

    @property
    def temperatures(self) -> np.ndarray:
        """Return the (E + 1,) float32 temperatures of all exits, that of the end last."""
        temperatures: np.ndarray = self._temperatures.copy()
        return temperatures

    def room_for(self, count: int, height: int, width: int) -> Output:
        """Return an output of a number of images of a size, which a call can be told to fill."""
        return Output(
            logits=np.empty((count, self._native.num_classes(height, width)), dtype=np.float32),
            options=np.empty((count, self._native.num_choices), dtype=np.int64),
            exits=np.empty(count, dtype=np.int64),
            temperatures=np.empty(count, dtype=np.float32),
        )

    def __call__(
        self,
        images: np.ndarray,
        *,
        options: np.ndarray | None = None,
        exits: np.ndarray | None = None,
        thresholds: np.ndarray | None = None,
        biases: np.ndarray | None = None,
        budget: float | None = None,
        out: Output | None = None,
        done: int | None = None,
    ) -> Output:
        """Return scores, options and exits of a batch.

        Pixels that are no number make logits that are none, as in PyTorch. With `options` and `exits` images
        take a given path: everything that a decision needs is computed, and the decision is not followed.
        With `thresholds` every image leaves by its own, in place of the plan's; `biases` are added to its
        scores at choices. A `budget` takes those that the plan has for it. With `out` and `done` an image can
        be answered when it is done, while others of its batch are still on their way.

        Args:
            images: (B, H, W, C) uint8 pixels, or (B, C, H, W) normalised floats of any precision; any B, also
                0, and any size that the network can take. Arrays that are not contiguous are copied.
            options: (B, L) option to run at every choice, also behind the exit; given together with `exits`.
            exits: (B) exit to leave at; the number of exits is the end.
            thresholds: (B, E) that scores of exits are compared with, as docs/plan.md says; one set for all
                images is np.tile(thresholds, (B, 1)).
            biases: (B, L) added to the scores of every choice, as docs/plan.md says of `dial`.
            budget: largest mean MACs per image as a fraction of the full network's, of a plan with `budgets`
                or a `dial`: thresholds or biases are those of its dearest one within.
            out: what `room_for` has returned for this batch; it is filled, and returned. Temperatures come
                last, when all images are done.
            done: file descriptor that gets the index of every image as soon as `out` holds its logits,
                options and exit: 8 bytes, in the machine's order. Where it takes no more, threads wait.

        Raises:
            PlanError: for another shape or type, or a budget that the plan does not have.
        """
        images = _array(images)
        if budget is not None:
            if thresholds is not None or biases is not None:
                raise PlanError("a budget has thresholds and biases of its own; give one of them")
            thresholds, biases = self._at(budget, images.shape[0])
        run: Callable[..., None]
        if images.dtype == np.uint8:
            run, (height, width) = self._native.run_bytes, images.shape[1:3]
        else:
            run, (height, width) = self._native.run_planes, images.shape[2:]
            # A number beyond float32 becomes an infinite one; that is no reason to warn.
            with np.errstate(over="ignore"):
                images = images.astype(np.float32, copy=False)
        self._check_channels(images)
        if out is None:
            out = self.room_for(images.shape[0], height, width)
        path = (_indices(options, "options", 2), _indices(exits, "exits", 1))
        by = (_floats(thresholds, "thresholds"), _floats(biases, "biases"))
        said = -1 if done is None else done
        run(np.ascontiguousarray(images), out.logits, out.options, out.exits, *path, *by, said)
        out.temperatures[:] = self._temperatures[out.exits]
        return out

    def _at(self, budget: float, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return thresholds and biases of a number of images within a budget."""
        level = self.plan.level_within(budget)
        rows = {
            name: np.tile(np.asarray(level[name], dtype=np.float32), (count, 1)) if name in level else None
            for name in ("thresholds", "biases")
        }
        return rows["thresholds"], rows["biases"]

    def _check_channels(self, images: np.ndarray) -> None:
        wanted, pixels = self.plan.channels, images.dtype == np.uint8
        if images.shape[3 if pixels else 1] != wanted:
            order = "uint8 pixels are (B, H, W, C)" if pixels else "normalised floats are (B, C, H, W)"
            raise PlanError(
                f"images must have {wanted} channels, got {images.shape[3 if pixels else 1]} in an array of "
                f"shape {images.shape}; {order}"
            )


def _temperatures(plan: Plan) -> list[float]:
    """Return those of all exits of a plan that can be run; 1 where none is written."""
    written = [step["exit"].get("temperature") for step in plan.steps if "exit" in step]
    return [1.0 if temperature is None else float(temperature) for temperature in written]


def _engine_of(plan: Plan, precision: Precision, num_threads: int, isa: str) -> Engine:
    return Engine(plan, precision=precision, num_threads=num_threads, isa=isa)


def _indices(values: Any, name: str, dimensions: int) -> np.ndarray | None:
    """Return indices of a path as the native part takes them."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise PlanError(
            f"{name} of a path must be integers in {dimensions} dimensions, got {array.dtype} in shape "
            f"{array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _floats(values: Any, name: str) -> np.ndarray | None:
    """Return thresholds of exits, or biases of choices, as the native part takes them."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise PlanError(f"{name} must be numbers in 2 dimensions, got {array.dtype} in shape {array.shape}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _array(images: Any) -> np.ndarray:
    """Return images as an array of four dimensions and of a type that engines take."""
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"images must be an array that NumPy can read: {error}") from None
    if array.ndim != 4:
        raise PlanError(
            f"images must have four dimensions, got shape {array.shape}; one image is a batch of one"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise PlanError(
            f"images must be uint8 pixels or normalised floats, got {array.dtype}; pixels are (B, H, W, C), "
            "floats (B, C, H, W)"
        )
    return array
