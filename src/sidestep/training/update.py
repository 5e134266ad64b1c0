"""One update of the weights from one batch: operation by operation, or replayed as one CUDA graph."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.cuda import CUDAGraph, Stream

from sidestep.routing.samplers import Noise
from sidestep.training.optimizer import can_be_recorded
from sidestep.training.step import TrainingStep
from sidestep.training.training_config import OptimizerConfig, Phase
from sidestep.types import Batch

# Steps of a kind before it is recorded: they load kernels and create the optimiser's buffers.
WARM_UP_STEPS = 2
# What a step reads of a batch.
_TENSORS = ("images", "labels", "statistics", "partners", "share")
_recording = threading.Lock()

Figures = dict[str, Tensor]
_Kind = tuple[bool, int, torch.Size]


class Update(Protocol):
    """A way to take one optimiser step."""

    def __call__(self, batch: Batch, *, progress: float, seed: int, log_figures: bool) -> Figures:
        """Update the weights, and return the loss, its terms and what is only logged, all scalars.

        The figures hold until the next call.

        Args:
            batch: what the step sees.
            progress: position in the phase, in [0, 1].
            seed: of all draws of the step.
            log_figures: whether figures are computed that cost time and are only logged.
        """
        ...


class EagerUpdate:
    """The update as PyTorch runs it, one operation after the other.

    Args:
        step: what is run forward.
        optimizer: of the parameters that learn.
        fabric: says devices, processes and precision.
        phase: which paths are taken.
        noise: source of the draws, seeded anew by every call.
    """

    def __init__(
        self,
        step: TrainingStep,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        *,
        phase: Phase,
        noise: Noise,
    ) -> None:
        self._step, self._fabric, self._phase, self._noise = step, fabric, phase, noise
        self._module, self._optimizer = fabric.setup(step, optimizer)

    @property
    def generator(self) -> torch.Generator:
        """Return the source of the draws."""
        return self._noise.generator

    def renew_generator(self) -> None:
        """Draw from a new generator: one whose recording broke off still waits for its end."""
        self._noise.generator = torch.Generator(self.generator.device)

    def ramped(self, progress: float) -> dict[str, float]:
        """Return the values of the settings that move in the phase."""
        return self._phase.ramped(progress)

    def __call__(self, batch: Batch, *, progress: float, seed: int, log_figures: bool) -> Figures:
        self.generator.manual_seed(seed)
        return self.run(batch, progress=progress, log_figures=log_figures)

    def run(self, batch: Batch, *, progress: float, log_figures: bool) -> Figures:
        """Do the same with the generator as it stands."""
        self._step.begin(self._phase, progress, self._noise, log_figures=log_figures, views=batch.views)
        losses, figures = self._module(
            batch.images, batch.labels, batch.statistics, batch.partners, batch.share
        )
        loss = torch.stack(list(losses.values())).sum()
        self._optimizer.zero_grad()
        self._fabric.backward(loss)
        if batch.learners is not None:
            self._step.forget_gradients(batch.learners)
        self._optimizer.step()
        return {name: value.detach() for name, value in {"loss": loss, **losses, **figures}.items()}


class Record(Protocol):
    """Runs a function once so that it can be repeated; returns what repeats it."""

    def __call__(
        self, function: Callable[[], Figures], generator: torch.Generator
    ) -> Callable[[], Figures]: ...


@dataclass(slots=True)
class _Recorded:
    batch: Batch
    repeat: Callable[[], Figures]


class GraphedUpdate:
    """The update recorded once for every kind of step, and repeated on the tensors of the recording.

    Numbers become part of a recording, so the learning rate must be a tensor (`TensorRates`), and settings
    may move in steps alone: with each all is recorded anew. Noise does not repeat: every call seeds the
    generator, whose state a graph reads.
    What cannot be recorded is run operation by operation from then on.

    Args:
        eager: what is recorded.
        say: is told when a recording fails.
        record: how it is done; as a CUDA graph by default.
    """

    def __init__(self, eager: EagerUpdate, say: Callable[[str], None], record: Record | None = None) -> None:
        self._eager, self._say = eager, say
        self._record = record or record_cuda_graph
        self._seen: Counter[_Kind] = Counter()
        self._recorded: dict[_Kind, _Recorded] = {}
        self._ramped: dict[str, float] = {}
        self._failed = False

    def __call__(self, batch: Batch, *, progress: float, seed: int, log_figures: bool) -> Figures:
        if (ramped := self._eager.ramped(progress)) != self._ramped:
            self._ramped, self._recorded = ramped, {}
            self._seen.clear()
        kind = log_figures, batch.views, batch.images.shape
        self._seen[kind] += 1
        if self._failed or self._seen[kind] <= WARM_UP_STEPS:
            return self._eager(batch, progress=progress, seed=seed, log_figures=log_figures)
        if kind not in self._recorded:
            try:
                self._recorded[kind] = self._recording(batch, progress=progress, log_figures=log_figures)
            except RuntimeError as error:
                self._give_up(error)
                return self._eager(batch, progress=progress, seed=seed, log_figures=log_figures)
        recorded = self._recorded[kind]
        _copy(batch, recorded.batch)
        self._eager.generator.manual_seed(seed)
        return recorded.repeat()

    def _recording(self, batch: Batch, *, progress: float, log_figures: bool) -> _Recorded:
        kept = _cloned(batch)
        repeat = self._record(
            lambda: self._eager.run(kept, progress=progress, log_figures=log_figures), self._eager.generator
        )
        return _Recorded(kept, repeat)

    def _give_up(self, error: RuntimeError) -> None:
        self._failed, self._recorded = True, {}
        self._eager.renew_generator()
        self._say(f"steps run without a graph, which could not be recorded: {str(error).splitlines()[0]}")


def record_cuda_graph(function: Callable[[], Figures], generator: torch.Generator) -> Callable[[], Figures]:
    """Return what replays a function's kernels, which are recorded without being run."""
    graph = CUDAGraph()
    graph.register_generator_state(generator)
    # Only what this thread does is to be recorded, and one recording at a time: others may train beside it.
    with (
        _recording,
        torch.cuda.graph(graph, stream=_stream(), capture_error_mode="thread_local"),
    ):
        figures = function()

    def repeat() -> Figures:
        graph.replay()
        return figures

    return repeat


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run what is inside on a CUDA stream of its own, beside other trainings of the process.

    On a CPU nothing changes. A recording needs it, since work on the default stream cannot be recorded.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def obstacle(phase: Phase, fabric: Fabric, optimizer: OptimizerConfig) -> str | None:
    """Return why the updates of a phase cannot be recorded, or None."""
    if not can_be_recorded(optimizer):
        return f"{optimizer.algorithm} counts its steps on the host"
    if fabric.world_size > 1:
        return "several processes exchange gradients"
    if moving := [name for name, ramp in phase.ramps.items() if ramp.steps is None]:
        return f"the settings {', '.join(moving)} move with every update, and have no ramps.*.steps"
    if phase.images == "apart":
        return "blocks and routers learn by turns"
    return None


def _stream(device: torch.device | None = None) -> Stream:
    return Stream(device)  # type: ignore[no-untyped-call]


def _cloned(batch: Batch) -> Batch:
    """Return a batch whose tensors stay where they are."""
    tensors = {name: value.clone() for name in _TENSORS if (value := getattr(batch, name)) is not None}
    return replace(batch, **tensors)


def _copy(source: Batch, target: Batch) -> None:
    for name in _TENSORS:
        if (value := getattr(source, name)) is not None:
            getattr(target, name).copy_(value)
