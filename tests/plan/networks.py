"""Networks of every kind whose routers disagree about images, and their plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.format import Plan
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.policy import PolicyRouter
from sidestep.routing.samplers import Sample, argmax
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict
from tests import strategies
from tests.doubles import enliven

SIZE = (16, 16)
NUM_CLASSES = 5


def network_of(method: dict[str, Any], model: dict[str, Any], size: tuple[int, int] = SIZE) -> DynamicNetwork:
    """Return a lively network in evaluation mode."""
    torch.manual_seed(5)
    recipe = from_dict(
        {
            "name": "any",
            "method": method,
            "model": model,
            "data": {"source": "digits"},
            "training": {"phases": []},
        }
    )
    network = untrained(recipe, num_classes=NUM_CLASSES, input_size=size)
    return lively(network, strategies.images(16, 0, size=size[0]))


def lively(network: DynamicNetwork, images: Tensor) -> DynamicNetwork:
    """Return the network with statistics of these images, about half of which take each option."""
    enliven(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    for name, parameter in network.named_parameters():
        if name.startswith("router") and parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    with torch.no_grad():
        network(images, sampler=_by_chance)
    network.eval()
    if isinstance(network, RoutedNetwork):
        divide(network, images)
    return network


def _by_chance(logits: Tensor) -> Sample:
    weights = torch.eye(logits.shape[1])[torch.randint(logits.shape[1], (len(logits),))]
    return Sample(weights, weights)


def divide(network: RoutedNetwork, images: Tensor) -> None:
    """Set the biases of the routers so that every unit runs about half of the images, no decision close."""
    router: Any = network.router
    if isinstance(router, PolicyRouter):
        with torch.no_grad():
            router.network.fc.bias -= torch.stack([_gap(unit) for unit in router.begin(images)[..., 1].T])
    layers = getattr(router, "decide", None)
    if isinstance(layers, nn.Linear):
        with torch.no_grad():
            layers.bias[-1] -= _gap(network(images).decisions.logits[:, 1:].diff(dim=2).flatten())
    if not isinstance(layers, nn.ModuleList):
        return
    # Routers that leave out the first unit have a layer less.
    rest = iter([nn.Identity()] * (len(network.backbone.units) - len(layers)) + list(layers))

    def halving(logits: Tensor) -> Sample:
        layer, logits = next(rest), logits.clone()
        if isinstance(layer, nn.Linear):
            for option in range(1, logits.shape[1]):
                gap = _gap(logits[:, option] - logits[:, 0])
                layer.bias[option] -= gap
                logits[:, option] -= gap
        return argmax(logits)

    with torch.no_grad():
        network(images, sampler=halving)


def _gap(numbers: Tensor) -> Tensor:
    """Return the middle of the widest gap among the numbers around the median."""
    ordered = numbers.sort().values
    quarter = len(ordered) // 4
    place = quarter + ordered[quarter:-quarter].diff().argmax()
    return ordered[place : place + 2].mean()


def card_of(network: DynamicNetwork, size: tuple[int, int] = SIZE) -> PlanCard:
    return PlanCard(
        input_size=size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        class_names=tuple("abcde"),
        cost=measure_cost(network, size),
        about={"method": "any"},
    )


def plan_of(network: DynamicNetwork, size: tuple[int, int] = SIZE, rule: ExitRule | None = None) -> Plan:
    return export_plan(network, card_of(network, size), rule)
