"""Stand-ins and probes: a router that is told what to decide, small lively networks, hooks that count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.backbones.preact_resnet import Images
from sidestep.layers.residual import Mix, Skip
from sidestep.layers.shortcut import Shortcut
from sidestep.methods import METHODS
from sidestep.methods.act import ACT, SACT, HaltingConfig
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.networks.models import MODELS, ModelConfig, build_backbone
from sidestep.networks.msdnet import MsdNet, MsdNetConfig
from sidestep.networks.ranet import RaNet, RaNetConfig
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Noise, Sample, argmax

# Where `attached_network` has exits.
AT = ["layer1", "layer2.0"]
# Of images that end as 1x1 features behind the four stages of a network for photographs.
HALTING_SIZE = 32


class TableRouter(Router):
    """Decides what a (B, L) table of options says."""

    def __init__(self, table: Tensor, num_options: int = 2) -> None:
        super().__init__()
        self.table = table
        self.num_options = num_options

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        return nn.functional.one_hot(self.table[:, unit].long(), self.num_options).float(), state


def model_config(name: str, **values: Any) -> ModelConfig:
    """Return what a recipe's `model:` section with these keys says."""
    settings = MODELS[name].settings
    own = {field.name for field in fields(settings)} & values.keys()
    common = {key: value for key, value in values.items() if key not in own}
    return ModelConfig(name=name, settings=settings(**{key: values[key] for key in own}), **common)


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


def relational_router(backbone: Backbone, config: RelationalConfig | None = None) -> RelationalRouter:
    units = backbone.units
    return RelationalRouter([u.in_channels for u in units], [u.stage for u in units], config)


def lively_backbone(
    depth: int = 8,
    shortcut: Shortcut = "A",
    mix: Mix = "output",
    options: Literal[2, 3] = 2,
    se_ratio: int | None = None,
    skip: Skip = "relu",
) -> CifarResNet:
    config = CifarResNetConfig(
        depth=depth, shortcut=shortcut, mix=mix, options=options, se_ratio=se_ratio, skip=skip
    )
    backbone = CifarResNet(config)
    enliven(backbone)
    return backbone.eval()


def lively_network(
    depth: int = 8,
    shortcut: Shortcut = "A",
    mix: Mix = "output",
    config: RelationalConfig | None = None,
    se_ratio: int | None = None,
    skip: Skip = "relu",
) -> RoutedNetwork:
    """Return a network in evaluation mode whose routers disagree about images."""
    backbone = lively_backbone(depth, shortcut, mix, se_ratio=se_ratio, skip=skip)
    return lively_routed(backbone, torch.randn(64, 3, 8, 8), config)


def lively_routed(
    backbone: Backbone, images: Tensor, config: RelationalConfig | None = None
) -> RoutedNetwork:
    """Return a backbone in evaluation mode with routers that disagree about these images."""
    router = relational_router(backbone, config or RelationalConfig(dim=16))
    for decide in router.decide:
        nn.init.normal_(decide.weight)
    network = RoutedNetwork(backbone, router)
    divide_images(network, images)
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
def shared_network(depth: int = 8, shortcut: Shortcut = "A", skip: Skip = "relu") -> RoutedNetwork:
    """Return a lively network that no test may change."""
    torch.manual_seed(depth)
    return lively_network(depth, shortcut, skip=skip)


def halting_network(
    depth: int = 20,
    *,
    spatial: bool = False,
    preact: bool = True,
    eps: float = 0.01,
    images: Images = "cifar",
) -> HaltingNetwork:
    """Return a network in evaluation mode that halts after one unit here and after the last one there."""
    family = "preact_resnet" if preact else "resnet"
    name = f"cifar_{family}{depth}" if images == "cifar" else f"{family}{depth}"
    backbone = build_backbone(ModelConfig(name=name), 10)
    router = (SACT if spatial else ACT).router(backbone, HaltingConfig(eps=eps))
    network = HaltingNetwork(backbone, router)
    enliven(network)
    for unit in router.halting.values():
        for name, parameter in unit.named_parameters():
            if name.endswith("score.weight"):
                nn.init.normal_(parameter, std=6 * parameter[0].numel() ** -0.5)
            elif name.endswith("score.bias"):
                nn.init.zeros_(parameter)
    # Statistics of real features, without which all images would score the same.
    network.eval()
    for norm in router.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.train().momentum = 1.0
    batch, size = (64, 8) if images == "cifar" else (16, HALTING_SIZE)
    with torch.no_grad():
        network(torch.randn(batch, 3, size, size))
    return network.eval()


@cache
def shared_halting_network(
    depth: int = 20, *, spatial: bool = False, preact: bool = True, images: Images = "cifar"
) -> HaltingNetwork:
    """Return a halting network that no test may change."""
    torch.manual_seed(depth)
    return halting_network(depth, spatial=spatial, preact=preact, images=images)


# Small networks with early exits; between them they have every setting and every kind of layer.
EXIT_NETWORKS: dict[str, RaNetConfig | MsdNetConfig] = {
    "ranet": RaNetConfig(
        scale_list=(1, 2, 2), step=2, channels=4, growth=4, gr_factor=(2, 2, 1), bn_factor=(2, 1, 1)
    ),
    "ranet_lg": RaNetConfig(
        scale_list=(1, 1, 2, 3), blocks=1, block_step=1, step=2, stepmode="lg", channels=3, growth=5,
        gr_factor=(2, 1, 2, 1), bn_factor=(1, 2, 1, 2), reduction=0.4, compress=0.3, num_classes=4,
    ),
    "msdnet": MsdNetConfig(blocks=4, base=2, step=2, channels=4, growth=4, num_classes=5),
    "msdnet_min": MsdNetConfig(
        blocks=3, base=1, step=1, stepmode="lin_grow", prune="min", channels=4, growth=3, gr_factor=(1, 2, 3),
        bn_factor=None, reduction=0.7,
    ),
    "msdnet_short": MsdNetConfig(num_scales=4, blocks=2, base=2, step=1, channels=4, growth=4,
        gr_factor=(1, 1, 2, 2), bn_factor=(1, 2, 2, 1)),
}  # fmt: skip


def make_exit_network(config: RaNetConfig | MsdNetConfig) -> ExitNetwork:
    return RaNet(config) if isinstance(config, RaNetConfig) else MsdNet(config)


def lively_exits(network: ExitNetwork, images: Tensor) -> ExitNetwork:
    """Return the network in evaluation mode with statistics of these images, whose logits then differ."""
    enliven(network)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train().momentum = 1.0
    with torch.no_grad():
        network(images)
    return network.eval()


@cache
def shared_exit_network(name: str) -> ExitNetwork:
    """Return a lively network in evaluation mode that no test may change."""
    torch.manual_seed(0)
    return lively_exits(make_exit_network(EXIT_NETWORKS[name]), torch.randn(32, 3, 16, 16))


def attached_network(method: str = "rdi_net", at: Sequence[str] = AT, **settings: object) -> RoutedNetwork:
    """Return a small network in evaluation mode with lively routers and two exits."""
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(name="cifar_resnet14"), num_classes=10)
    config = METHODS[method].settings(**settings)
    router = METHODS[method].router(backbone, config)
    attached = attach_exits(RoutedNetwork(backbone, router), at, num_classes=10, width=8)
    enliven(attached)
    for module in attached.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    return attached.eval()


def branch_rows(backbone: Backbone) -> AbstractContextManager[list[int]]:
    """Yield the number of images that entered the branch of every unit."""
    return entered_rows([unit.conv1 for unit in backbone.units])


@contextmanager
def entered_rows(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Yield the number of images that entered each of some modules."""
    rows = [0] * len(modules)

    def counter(index: int) -> object:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows[index] += inputs[0].shape[0]

        return count

    handles = [module.register_forward_hook(counter(index)) for index, module in enumerate(modules)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
