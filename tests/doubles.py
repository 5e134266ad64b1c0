"""Stand-ins and probes: a router that is told what to decide, small lively networks, hooks that count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.backbones.routed import RoutedNetwork
from sidestep.layers.residual import Mix
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Noise, Sample, argmax


class TableRouter(Router):
    """Decides what a (B, L) table of zeros and ones says."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        execution = self.table[:, unit].float()
        return torch.stack([1 - execution, execution], dim=1), state


def noise(seed: int = 0, *, rank: int = 0, world_size: int = 1) -> Noise:
    return Noise(torch.Generator().manual_seed(seed), rank=rank, world_size=world_size)


def enliven(module: nn.Module) -> None:
    """Give every BatchNorm statistics and weights that a test can see."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.3, 0.8)
            nn.init.normal_(norm.bias, std=0.3)


def relational_router(backbone: CifarResNet, config: RelationalConfig | None = None) -> RelationalRouter:
    units = backbone.units
    return RelationalRouter([u.in_channels for u in units], [u.stage for u in units], config)


def lively_backbone(depth: int = 8, shortcut: Literal["A", "B"] = "A", mix: Mix = "output") -> CifarResNet:
    backbone = CifarResNet(CifarResNetConfig(depth=depth, shortcut=shortcut, mix=mix))
    enliven(backbone)
    return backbone.eval()


def lively_network(
    depth: int = 8,
    shortcut: Literal["A", "B"] = "A",
    mix: Mix = "output",
    config: RelationalConfig | None = None,
) -> RoutedNetwork:
    """Return a network in evaluation mode whose routers disagree about images."""
    backbone = lively_backbone(depth, shortcut, mix)
    router = relational_router(backbone, config or RelationalConfig(dim=16))
    for decide in router.decide:
        nn.init.normal_(decide.weight)
    network = RoutedNetwork(backbone, router)
    divide_images(network, torch.randn(64, 3, 8, 8))
    return network.eval()


def divide_images(network: RoutedNetwork, images: Tensor) -> None:
    """Set statistics and biases of the routers so that every unit executes half of these images."""
    decide = iter(network.router.decide)

    def halving(logits: Tensor) -> Sample:
        middle = (logits[:, 1] - logits[:, 0]).median()
        next(decide).bias.data[1] -= middle
        return argmax(torch.stack([logits[:, 0] + middle, logits[:, 1]], dim=1))

    for norm in network.router.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.momentum = 1.0
    network.router.train()
    with torch.no_grad():
        network(images, sampler=halving)


@cache
def shared_network(depth: int = 8, shortcut: Literal["A", "B"] = "A") -> RoutedNetwork:
    """Return a lively network that no test may change."""
    torch.manual_seed(depth)
    return lively_network(depth, shortcut)


@contextmanager
def branch_rows(backbone: CifarResNet) -> Iterator[list[int]]:
    """Yield the number of images that entered the branch of every unit."""
    rows = [0] * len(backbone.units)

    def counter(index: int) -> object:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows[index] += inputs[0].shape[0]

        return count

    handles = [unit.conv1.register_forward_hook(counter(i)) for i, unit in enumerate(backbone.units)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
