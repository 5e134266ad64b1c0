"""The cost book: what every part of a network costs, in MACs, measured once by running it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from sidestep.cost.counting import counted_macs
from sidestep.errors import RecipeError, SidestepError
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import (
    ROUTER_START,
    STEM,
    Visitor,
    exit_place,
    router_place,
    segment_place,
    walk,
)
from sidestep.types import CostModel


def measure_cost(network: DynamicNetwork, input_size: tuple[int, int]) -> CostModel:
    """Return the price of every option of every unit, and of every exit, for one image of `input_size`.

    One multiply-add counts once. Convolutions and matrix products count; BatchNorm, ReLU, pooling and
    additions are free. Shapes alone are run (on the meta device), so a large network takes milliseconds.

    Args:
        network: left untouched.
        input_size: height and width of the images.

    Raises:
        RecipeError: for images of a size that the network cannot take.
    """
    # Gradients are off, since the counter cannot follow views of parameters (attention pooling of a ViT).
    shadow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    try:
        return _priced(shadow, input_size)
    except Exception as error:  # RuntimeError of a kernel, AssertionError of timm, ...
        if isinstance(error, SidestepError):
            raise
        fits = next((side for side in _OTHER_SIDES if _can_take(shadow, (side, side))), None)
        if fits is None:
            raise
        height, width = input_size
        raise RecipeError(
            f"data.image_size must be one that the network can take, for example {fits}, got {height} x "
            f"{width}: {str(error).partition(chr(10))[0].rstrip('.')}"
        ) from error


# What is tried after a network has failed, to tell whether the size is to blame.
_OTHER_SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 384, 512)


def _priced(shadow: DynamicNetwork, input_size: tuple[int, int]) -> CostModel:
    pricing, images = _Pricing(shadow), torch.empty(1, shadow.image_channels, *input_size, device="meta")
    walk(shadow, images, pricing)
    if not shadow.shares_nothing:
        return pricing.cost()
    return replace(pricing.cost(), static=counted_macs(shadow.static, images)[0])


def _can_take(shadow: DynamicNetwork, input_size: tuple[int, int]) -> bool:
    try:
        _priced(shadow, input_size)
    except Exception:
        return False
    return True


class _Pricing(Visitor):
    """Counts every piece of a network, with every unit at its dearest option behind it.

    Attributes:
        macs: of the pieces that every image computes, by their places; 0 where there is nothing to compute.
        options: MACs of every option of every unit.
    """

    def __init__(self, network: DynamicNetwork) -> None:
        super().__init__(network.router)
        self.network = network
        self.macs: dict[str, float] = defaultdict(float)
        self.options: list[list[float]] = []

    def call(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
        macs, result = counted_macs(function, *arguments)
        self.macs[place] += macs
        return result

    def at_unit(self, index: int, unit: Unit) -> None:
        if self.router is not None:
            self.ask(index)
        runs = [counted_macs(unit.run, option, self.x) for option in range(unit.num_options)]
        self.options.append([macs for macs, _ in runs])
        self.x = runs[-1][1]

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        said = self.call(exit_place(index), classify, self.x)
        if self.router is not None:
            self.state = self.call(exit_place(index), self.router.see, said, self.state)
        return True

    def cost(self) -> CostModel:
        """Return the prices."""
        network, macs, num_units = self.network, self.macs, len(self.options)
        routers = torch.tensor([macs[router_place(index)] for index in range(num_units)])
        # What is asked before the first unit (a policy network, say) is paid by every image as well.
        routers[:1] += macs[ROUTER_START]
        options = torch.tensor(self.options) if num_units else torch.zeros(0, network.num_options)
        if not network.lets_leave:
            # Early exits that are there for gates alone are part of these.
            *early, head = range(network.num_exits)
            for index, place in zip(early, network.units_before, strict=False):
                routers[place] += macs[exit_place(index)]
            fixed = macs[STEM] + macs[exit_place(head)]
            return CostModel(fixed=fixed, options=options, routers=routers)
        exits = [macs[segment_place(index)] + macs[exit_place(index)] for index in range(network.num_exits)]
        return CostModel(
            fixed=macs[STEM],
            options=options,
            routers=routers,
            exits=torch.tensor(list(accumulate(exits))),
            exit_units=torch.tensor(network.units_before),
        )
