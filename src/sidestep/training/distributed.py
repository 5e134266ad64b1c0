"""What the processes of a run do together: BatchNorm, decisions, sums, and errors.

BatchNorm over several processes is here because torch offers it for GPUs only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from sidestep.errors import (
    LoneProcessError,
    LostProcessError,
    RecipeError,
    SidestepError,
    TrainingError,
    understood,
)
from sidestep.internals import BatchNorm
from sidestep.layers.processes import num_processes, sum_over_processes
from sidestep.training.meter import Sums

T = TypeVar("T")


def is_first() -> bool:
    """Return whether this is the only process or the first of several, the one that speaks to the user.

    Before the processes know of each other there is a first one on every node.
    """
    if num_processes() > 1:
        return dist.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


class Agreement:
    """Questions that all processes answer alike at the same step, such as whether to stop after it.

    Answers come through a group of the hosts: nobody waits for the kernels of a GPU, and a process that has
    died is noticed in the same step.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if num_processes() > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # every process is a member
            self._group = group

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for every flag whether it is up in any process; all processes have to ask."""
        if self._group is None:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(raised.bool().tolist())


def mean_sums(sums: Sums, fabric: Fabric) -> Sums:
    """Return sums whose values are means over processes; names and counts are the same in all of them.

    Whoever goes on with these reaches the same means of an epoch, with any number of processes.
    """
    if fabric.world_size == 1 or not sums:
        return sums
    values = torch.tensor([value for value, _ in sums.values()], dtype=torch.float64, device=fabric.device)
    means = sum_over_processes(values) / fabric.world_size
    counts = (count for _, count in sums.values())
    return dict(zip(sums, zip(means.tolist(), counts, strict=True), strict=True))


def all_succeed(fabric: Fabric, action: Callable[[], T]) -> T:
    """Return what an action returns, once it has come to its end in every process.

    The first process of a node does it before the others, which find then what it has downloaded.

    Raises:
        SidestepError: in every process, when one of them has raised it.
    """
    results: list[T] = []
    error: SidestepError | None = None
    for first in (True, False):
        if first == (fabric.local_rank == 0):
            try:
                results.append(action())
            except SidestepError as caught:
                error = caught
        fabric.barrier()
    errors = [error] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found
    return results[0]


@contextmanager
def named_errors(fabric: Fabric) -> Iterator[None]:
    """Name the process where an error is that of one alone, also the error that a partner is gone.

    Raises:
        LostProcessError: where the connection to another process has broken.
        LoneProcessError: where a process that is not the first has an error that others need not have.
    """
    who = f"process {fabric.global_rank} of {fabric.world_size}"
    try:
        with _understood_errors():
            yield
    except RuntimeError as error:
        # Gloo says its file and line, and has no error class of its own.
        if fabric.world_size == 1 or not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
            raise
        raise LostProcessError(
            f"{who} lost the connection to another one, which has ended or cannot be reached; what the run "
            "folder holds is whole, continue with --resume"
        ) from error
    except SidestepError as error:
        # Errors of training are common to all, and the first process reports them.
        if fabric.is_global_zero or isinstance(error, TrainingError):
            raise
        raise LoneProcessError(f"{who}: {error}") from error


@contextmanager
def _understood_errors() -> Iterator[None]:
    """Say in a sentence what libraries and the operating system raise when memory or disks are short."""
    try:
        yield
    except SidestepError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if (meant := understood(error)) is not None:
            raise meant from error
        raise


def synchronize_batch_norm(network: nn.Module) -> None:
    """Make every BatchNorm of a network see the global batch, so that processes reach what one would.

    Raises:
        RecipeError: for a BatchNorm that computes something of its own.
    """
    for name, module in network.named_modules():
        if not isinstance(module, BatchNorm):
            continue
        if type(module) not in _SYNCHRONIZED:
            raise RecipeError(
                f"BatchNorms must be torch's BatchNorm1d or 2d for several processes, got "
                f"{type(module).__name__} at {name}; train this network in one process"
            )
        module.__class__ = _SYNCHRONIZED[type(module)]


class _GlobalStatistics:
    """forward() of a BatchNorm whose mean and variance are taken over all processes' equal batches."""

    def forward(self, x: Tensor) -> Tensor:
        norm: nn.BatchNorm2d = self  # type: ignore[assignment]  # mixed into BatchNorm classes only
        if not norm.training or norm.running_mean is None or norm.running_var is None:
            return F.batch_norm(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        wide = x.float()
        mean, variance = _over_processes(*_moments(wide, axes, shape))
        _track(norm, mean, variance, x.numel() // x.shape[1] * num_processes())
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        out: Tensor = wide * scale.view(shape) + (norm.bias - mean * scale).view(shape)
        return out.to(x.dtype)


def _moments(x: Tensor, axes: list[int], shape: list[int]) -> tuple[Tensor, Tensor]:
    """Return the (C,) means and variances of this process's batch."""
    mean = x.mean(axes)
    return mean, (x - mean.view(shape)).square().mean(axes)


def _over_processes(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances of the global batch from those of equal parts."""
    # In float32 the difference of squares would lose what sets a process apart from one.
    wide = mean.double()
    local = torch.stack([wide, variance.double() + wide.square()])
    total, square = sum_over_processes(local) / num_processes()
    return total.to(mean), (square - total.square()).clamp_min(0).to(variance)


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    with torch.no_grad():
        momentum = norm.momentum if norm.momentum is not None else 0.1
        for running, value in ((norm.running_mean, mean), (norm.running_var, variance * count / (count - 1))):
            if running is not None:
                running.lerp_(value.to(running), momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)


class _GlobalBatchNorm1d(_GlobalStatistics, nn.BatchNorm1d):
    pass


class _GlobalBatchNorm2d(_GlobalStatistics, nn.BatchNorm2d):
    pass


_SYNCHRONIZED: dict[type, type] = {nn.BatchNorm1d: _GlobalBatchNorm1d, nn.BatchNorm2d: _GlobalBatchNorm2d}
