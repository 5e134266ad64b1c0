"""How long a network takes: masked and gathered beside its static origin in the runtimes users would pick."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation.environment import hardware, versions
from sidestep.evaluation.rivals import (
    Runner,
    export_onnx,
    int8_networks,
    int8_runners,
    pytorch_input,
    static_runners,
)
from sidestep.execution.execution import Execution, cascade, gathered, masked
from sidestep.execution.prepare import Precision, cast, prepare
from sidestep.networks.network import DynamicNetwork
from sidestep.progress import Pace, time_left
from sidestep.routing.exit_rule import ExitRule

# The runtime of rows of the native engine, which whoever has it hands to `bench_network`.
ENGINE = "engine"
BenchPrecision = Precision | Literal["int8"]

_log = logging.getLogger(__name__)

# ONNX Runtime's idle threads spin for 50 ms, and whoever comes next would share the cores with them.
_PAUSE_SECONDS = 0.1
_TURN_SECONDS = 0.02
# What a cold start costs, milliseconds, is lost in a call that takes longer than this.
_LONG_SECONDS = 1.0
_MIN_ROUNDS = 3
# A single image's path says little: small batches alternate between as many different images.
SINGLE_IMAGES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One way of running the network at one batch size.

    Attributes:
        runtime: "masked", "gathered" and "engine" route, "cascade" and "engine" leave at exits, "static ..."
            computes everything.
        precision: of weights and features; "int8" is quantised after training.
        batch_size: images per call.
        median_ms: of a call; small batches are several, of different images, and this is their mean.
        ms_per_image: the same over the batch size.
        ratio_to_best_static: median over that of the fastest static row of this batch size and precision,
            for INT8 of any precision; below 1 skipping has paid.
    """

    runtime: str
    precision: BenchPrecision
    batch_size: int
    median_ms: float
    ms_per_image: float
    ratio_to_best_static: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The result of a bench.

    Attributes:
        hardware: processor, its relevant flags, cores, and threads in use.
        versions: of Python and the runtimes.
        rows: by precision, batch size and runtime.
    """

    hardware: dict[str, Any]
    versions: dict[str, str]
    rows: list[BenchRow]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values, ready for JSON."""
        return asdict(self)


def bench_network(
    network: DynamicNetwork,
    *,
    input_size: tuple[int, int],
    batch_sizes: Sequence[int] = (1, 32, 256),
    images: Tensor | None = None,
    precisions: Sequence[Precision] = ("float32", "bfloat16"),
    seconds: float = 10.0,
    rule: ExitRule | None = None,
    extra: Mapping[BenchPrecision, Mapping[str, Runner]] | None = None,
    calibration: Tensor | None = None,
) -> BenchResult:
    """Return measured times of a network beside those of its static rival, which leaves nothing out.

    For every precision and batch size all runtimes take turns in one process, with the same number of threads
    (`torch.get_num_threads()`), so that a slow spell of the machine hits them all. Everything that does not
    depend on the images is done before: folding, casting, export, compilation, conversion of the input. Only
    runtimes that are installed appear; on CUDA that is PyTorch alone.

    Args:
        network: left untouched; without a router only static rows appear.
        input_size: height and width of the images.
        batch_sizes: images per call.
        images: (N, 3, H, W) normalised images to route on, repeated where a batch wants more; random by
            default, on which a trained network takes paths that it takes on no real image.
        precisions: of weights and features.
        seconds: time limit of every precision and batch size, after the warm-up; every runtime gets at least
            three turns.
        rule: where images leave a network with early exits; without one there is no cascade.
        extra: other ways to run the same network, by precision and name.
        calibration: (N, C, H, W) images on which static runtimes on the CPU quantise the network; None leaves
            INT8 out.

    Raises:
        ExecutionError: when the images do not have the input size.
    """
    if not 0 <= seconds < math.inf:
        raise RecipeError(f"seconds must be at least 0 and finite, got {seconds}; 10 are usual")
    device = next(network.parameters()).device
    images = _checked(images, (network.image_channels, *input_size), max(batch_sizes)).to(device)
    prepared = prepare(network, images[:2])
    onnx = export_onnx(prepared.static, input_size) if device.type == "cpu" else None
    rows = []
    on_bytes = calibration is not None or "int8" in (extra or {})
    places = _Places(len(batch_sizes) * (len(precisions) + on_bytes), seconds)
    for precision in precisions:
        dynamic = _dynamic_runners(prepared, precision, rule) | dict((extra or {}).get(precision, {}))
        for batch_size in batch_sizes:
            places.begin(precision, batch_size)
            runners = dynamic | static_runners(prepared.static, onnx, precision, batch_size)
            medians = _measure(runners, batches_of(images, batch_size), seconds)
            rows += _rows(medians, precision, batch_size)
    quantised = {} if calibration is None else int8_networks(onnx, calibration)
    for batch_size in batch_sizes:
        if runners := dict((extra or {}).get("int8", {})) | int8_runners(quantised, batch_size):
            places.begin("int8", batch_size)
            medians = _measure(runners, batches_of(images, batch_size), seconds)
            others = [row for row in rows if row.batch_size == batch_size and _is_static(row.runtime)]
            rows += _rows(medians, "int8", batch_size, [row.median_ms for row in others])
    return BenchResult(hardware=hardware(device), versions=versions(), rows=rows)


class _Places:
    """Says which precision and batch size is timed, by lines: what moves a bar takes time from what is timed.

    Args:
        total: number of all.
        seconds: time limit of each.
    """

    def __init__(self, total: int, seconds: float) -> None:
        self._total, self._seconds = total, seconds
        self._begun, self._pace = 0, Pace()

    def begin(self, precision: BenchPrecision, batch_size: int) -> None:
        """Say that the next one begins."""
        left = self._pace.seconds_left(self._begun, self._total) or self._total * self._seconds
        self._begun += 1
        place = f"{self._begun} of {self._total}, {time_left(left)}"
        _log.info("timing %s, batch %d: %s", precision, batch_size, place)


def interleave(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, pauses: bool = True
) -> dict[str, float]:
    """Return the median milliseconds of every call.

    After a warm-up the calls take turns (`turn`) with a pause before each, in an order that is reversed every
    round, until the time is up.

    Args:
        calls: what is timed, by name; each returns when its work is done.
        seconds: time limit without the warm-up; three rounds are played in any case.
        pauses: False where no call leaves threads behind that spin beside the next one.
    """
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, rounds, end = list(calls), 0, time.monotonic() + seconds
    while rounds < _MIN_ROUNDS or time.monotonic() < end:
        for name in order:
            if pauses:
                time.sleep(_PAUSE_SECONDS)
            times[name] += turn(calls[name])
        order.reverse()
        rounds += 1
    return {name: 1e3 * median(durations) for name, durations in times.items()}


def _dynamic_runners(
    prepared: DynamicNetwork, precision: Precision, rule: ExitRule | None
) -> dict[str, Runner]:
    network = cast(prepared, precision)

    def runner(execution: Execution) -> Runner:
        return Runner(
            convert=pytorch_input(precision),
            run=lambda images: network(images, execution=execution, rule=rule).logits,
        )

    ways = [] if prepared.router is None else [masked, gathered]
    if prepared.lets_leave:
        ways = [masked, *([cascade] if rule is not None else [])]
    return {way.name: runner(way) for way in ways}


def _measure(runners: Mapping[str, Runner], batches: Sequence[Tensor], seconds: float) -> dict[str, float]:
    on_cuda = batches[0].is_cuda

    def call(runner: Runner) -> Callable[[], object]:
        inputs = [runner.convert(batch) for batch in batches]

        def run() -> None:
            # All of them: a median over single images would be that of those which leave early.
            for each in inputs:
                runner.run(each)
                if on_cuda:
                    torch.cuda.synchronize()

        return run

    with torch.inference_mode():
        rounds = interleave({name: call(runner) for name, runner in runners.items()}, seconds=seconds)
    return {name: ms / len(batches) for name, ms in rounds.items()}


def turn(call: Callable[[], object]) -> list[float]:
    """Return the durations in seconds of as many calls as fit into 20 ms, but at least one.

    The call before them, which finds caches that others have filled and threads that sleep, does not count,
    unless it takes over a second: then it is the turn.
    """

    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    first = timed()
    if first > _LONG_SECONDS:
        return [first]
    durations: list[float] = []
    while sum(durations) < _TURN_SECONDS:
        durations.append(timed())
    return durations


def _is_static(runtime: str) -> bool:
    return runtime.startswith("static")


def _rows(
    medians: Mapping[str, float], precision: BenchPrecision, batch_size: int, others: Sequence[float] = ()
) -> list[BenchRow]:
    """Return rows, beside the fastest static one of them and of others."""
    best = min(*others, *(ms for runtime, ms in medians.items() if _is_static(runtime)), math.inf)
    return [
        BenchRow(
            runtime=runtime,
            precision=precision,
            batch_size=batch_size,
            median_ms=ms,
            ms_per_image=ms / batch_size,
            ratio_to_best_static=ms / best,
        )
        for runtime, ms in medians.items()
    ]


def _checked(images: Tensor | None, shape: tuple[int, int, int], count: int) -> Tensor:
    if images is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(max(count, SINGLE_IMAGES), *shape, generator=generator)
    if images.shape[1:] != shape or not len(images):
        raise ExecutionError(
            f"images must be at least one of shape {shape}, got {tuple(images.shape)}; "
            "pass the images that the network was trained for, or their input_size"
        )
    return images


def batches_of(images: Tensor, batch_size: int) -> list[Tensor]:
    """Return one large batch or several small ones, repeating the images where they are too few."""
    count = max(1, SINGLE_IMAGES // batch_size)
    rows = torch.arange(count * batch_size, device=images.device) % len(images)
    return list(images[rows].view(count, batch_size, *images.shape[1:]))
