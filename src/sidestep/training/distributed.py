"""BatchNorm over several CPU processes, which torch offers for GPUs only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


def synchronize_batch_norm(network: nn.Module) -> None:
    """Make every BatchNorm of a network see the global batch, so that processes reach what one would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
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
        wide = x.float()
        local = torch.stack([wide.mean(axes), wide.square().mean(axes)])
        reduced: Tensor = all_reduce(local)  # type: ignore[no-untyped-call]
        mean, square = reduced / dist.get_world_size()
        variance = (square - mean.square()).clamp_min(0)
        _track(norm, mean, variance, x.numel() // x.shape[1] * dist.get_world_size())
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        out: Tensor = wide * scale.view(shape) + (norm.bias - mean * scale).view(shape)
        return out.to(x.dtype)


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
