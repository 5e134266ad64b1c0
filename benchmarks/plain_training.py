"""RDI-Net's training step as one writes it down from the paper: the rival of `training_speed.py`.

Float32, images in NCHW, one module call after the other, blends by multiplication, losses as loops over the
images of the batch. It runs the weights of sidestep's own network, so both train the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.methods.rdi_net import RdiNetConfig
from sidestep.networks.routed import RoutedNetwork
from sidestep.types import Batch


def plain_step(
    network: RoutedNetwork, settings: RdiNetConfig, batch: Batch, *, lr: float = 0.01
) -> Callable[[], float]:
    """Return a call that trains a ResNet with relational routers once more, and returns the loss."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)

    def run() -> float:
        logits, execution = plain_forward(network, settings, batch.images, generator)
        loss = F.cross_entropy(logits, batch.labels)
        loss = loss + settings.cost_weight * _cost_loss(execution, settings.target)
        if settings.srm.alpha > 0 and batch.statistics is not None:
            loss = loss + settings.srm.alpha * _rank_loss(execution, batch.statistics, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def plain_forward(
    network: RoutedNetwork, settings: RdiNetConfig, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return (B, classes) logits and the (B, L) soft weights of executing."""
    backbone: Any = network.backbone
    router: Any = network.router
    x = F.relu(backbone.bn1(backbone.conv1(images)))
    seen: list[Tensor] = []
    execution = []
    for index, unit in enumerate(backbone.units):
        scores = _route(router, index, F.adaptive_avg_pool2d(x, 1).flatten(1), seen)
        uniform = torch.rand(scores.shape, generator=generator).clamp(1e-10, 1 - 1e-7)
        gumbel = -torch.log(-torch.log(uniform))
        weights = F.softmax((scores + gumbel) / settings.temperature, dim=1)
        execute, skip = weights[:, 1].view(-1, 1, 1, 1), weights[:, 0].view(-1, 1, 1, 1)
        branch = unit.bn2(unit.conv2(F.relu(unit.bn1(unit.conv1(x)))))
        shortcut = unit.shortcut(x)
        x = execute * F.relu(branch + shortcut) + skip * shortcut
        execution.append(weights[:, 1])
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return backbone.fc(pooled), torch.stack(execution, dim=1)


def _route(router: Any, index: int, pooled: Tensor, seen: list[Tensor]) -> Tensor:
    align: nn.Module = router.align[index]
    mixed = F.relu(align(pooled))
    for distance in range(1, min(router.config.reach, len(seen)) + 1):
        mixed = mixed + router.config.gamma**distance * seen[-distance]
    seen.append(F.relu(router.gcn[index](mixed)))
    scores: Tensor = router.decide[index](seen[-1])
    return scores


def _cost_loss(execution: Tensor, target: float) -> Tensor:
    total = torch.zeros(execution.shape[1])
    for image in execution:
        total = total + image
    return ((total / len(execution) - target) ** 2).sum()


def _rank_loss(execution: Tensor, statistics: Tensor, settings: RdiNetConfig) -> Tensor:
    srm, count = settings.srm, len(statistics)
    total, kept = execution.new_zeros(()), 0
    for anchor in range(count):
        others = [image for image in range(count) if image != anchor]
        distances, order = (statistics[others] - statistics[anchor]).norm(dim=1).sort(stable=True)
        # 1e-12 keeps the gradient of the root of zero finite.
        gaps = execution[others][order] - execution[anchor]
        paths = (gaps.square().sum(dim=1) + 1e-12).sqrt()
        gap = distances[srm.stride :] - distances[: -srm.stride]
        mean_gap = (distances[-1] - distances[0]) / (len(distances) - 1)
        keep = (gap > 0) & (gap >= srm.min_gap * mean_gap)
        terms = (paths[: -srm.stride] - paths[srm.stride :] + srm.margin).clamp_min(0)
        total = total + terms[keep].sum()
        kept += int(keep.sum())
    return total / max(kept, 1)
