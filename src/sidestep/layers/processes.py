"""Sums over the processes of a run, with gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function


def num_processes() -> int:
    """Return how many processes compute together; 1 before they know of each other."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of all processes' tensors; gradients are summed in the same way."""
    total: Tensor = _Sum.apply(values)
    return total


def gathered_rows(values: Tensor) -> Tensor:
    """Return the rows of all processes' equally long tensors, one behind the other, without gradients."""
    if num_processes() == 1:
        return values
    padded = values.new_zeros(num_processes(), *values.shape)
    padded[dist.get_rank()] = values
    return _summed(padded).flatten(0, 1)


class _Sum(Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.detach().contiguous().clone()
    dist.all_reduce(total)
    return total
