"""Decisions that are drawn in evaluation, as some released codes do: seeded, whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from sidestep.errors import ExecutionError
from sidestep.execution.execution import Execution
from sidestep.routing.samplers import Noise, Sample, Sampler, argmax, one_hot_argmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What an evaluation with noise draws from.

    Args:
        sampler: makes the sampler, given the source of its noise; see `Method.noisy_sampler`.
        seed: of the noise, at least 0.
    """

    sampler: Callable[[Noise], Sampler]
    seed: int = 0


class ImageNoise(Noise):
    """Uniform draws that follow from seed, unit and image, and not from how images are cut into batches.

    The n-th call of every forward pass, which is that of the n-th unit, has a generator of its own, and
    takes as many numbers from it as there are images. Call `begin_batch` before every forward pass.

    Args:
        seed: of all generators.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(torch.Generator().manual_seed(seed))
        self._of_calls: list[torch.Generator] = []
        self._call = 0

    def begin_batch(self) -> None:
        """Start with the first unit again."""
        self._call = 0

    def uniform(self, rows: int, columns: int, device: torch.device) -> Tensor:
        if self._call == len(self._of_calls):
            seed = int(torch.randint(2**62, (), generator=self.generator))
            self._of_calls.append(torch.Generator().manual_seed(seed))
        generator, self._call = self._of_calls[self._call], self._call + 1
        return torch.rand(rows, columns, generator=generator).to(device)


def samplers(sampled: Sampled | None, execution: Execution) -> Iterator[Sampler]:
    """Yield the sampler of one batch after the other, without end.

    Args:
        sampled: what is drawn from; None is the arg-max.
        execution: how the network is run.

    Raises:
        ExecutionError: when soft weights are drawn for an execution that does not compute all options.
    """
    if sampled is None:
        yield from repeat(argmax)
        return
    noise = ImageNoise(sampled.seed)
    sampler = sampled.sampler(noise)
    sampler = sampler if execution.computes_all else _checked(sampler, execution.name)
    while True:
        noise.begin_batch()
        yield sampler


def _checked(sampler: Sampler, execution: str) -> Sampler:
    """Return the sampler with a look at its weights, which the execution trusts to be one-hot."""

    def checked(logits: Tensor) -> Sample:
        sample = sampler(logits)
        if not torch.equal(sample.weights, one_hot_argmax(sample.weights)):
            raise ExecutionError(
                f"{execution} execution needs sampled decisions that are hard, got a sampler that mixes the "
                "options of a unit; use masked execution, or train with hard decisions"
            )
        return sample

    return checked
