"""The cost book: what every part of a network costs, in MACs, measured once by running it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from sidestep.routing.samplers import argmax
from sidestep.types import CostModel


def measure_cost(model: nn.Module, input_size: tuple[int, int]) -> CostModel:
    """Return the price of every option of every unit, and of every exit, for one image of `input_size`.

    One multiply-add counts once. Convolutions and matrix products count; BatchNorm, ReLU, pooling and
    additions are free. Shapes alone are run (on the meta device), so a large network takes milliseconds.

    Args:
        model: a dynamic network: it has a `backbone` (stem, units, head) and a `router`, or exits alone, or
            both; left untouched.
        input_size: height and width of the images.
    """
    # Gradients are off, since the counter cannot follow views of parameters (attention pooling of a ViT).
    shadow: Any = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    images = torch.empty(1, 3, *input_size, device="meta")
    if not hasattr(shadow, "num_exits"):
        return _unit_prices(shadow, images)
    has_units = hasattr(shadow, "backbone")
    if has_units:
        rest = _unit_prices(shadow, images, head=False)
    else:
        begun, _ = _counted(shadow.begin, images)
        rest = CostModel(fixed_macs=begun, option_macs=torch.zeros(0, 2), router_macs=torch.zeros(0))
    return replace(
        rest,
        exit_macs=_exit_prices(shadow, images, units_are_priced=has_units),
        exit_units=torch.tensor(shadow.units_before),
    )


def _unit_prices(network: Any, images: Tensor, *, head: bool = True) -> CostModel:
    """Return the prices of a network with units, its head included unless that is an exit."""
    router, backbone = network.router, network.backbone
    fixed, x = _counted(backbone.stem, images)
    begun, state = _counted(router.begin, images) if router is not None else (0.0, None)
    options: list[list[float]] = []
    routers: list[float] = []
    for index, unit in enumerate(backbone.units):
        if router is not None:
            macs, (_, state) = _counted(router, index, x, state)
            # What is asked before the first unit (a policy network, say) is paid by every image as well.
            routers.append(macs + (0.0 if routers else begun))
        runs = [_counted(unit.run, option, x) for option in range(unit.num_options)]
        options.append([macs for macs, _ in runs])
        x = runs[-1][1]
    return CostModel(
        fixed_macs=fixed + (_counted(backbone.head, x)[0] if head else 0.0),
        option_macs=torch.tensor(options),
        router_macs=torch.tensor(routers or [0.0] * len(options)),
    )


def _exit_prices(network: Any, images: Tensor, *, units_are_priced: bool) -> Tensor:
    """Return the (E,) MACs that run when exits are reached one by one, heads on the way included."""
    steps = network.steps(sampler=argmax, router=None, execute=lambda unit, x, _: unit.execute(x))
    state, total, prices = steps.begin(images), 0.0, []
    for index in range(network.num_exits):
        advanced, state = _counted(steps.advance, index, state)
        classified, _ = _counted(steps.classify, index, state)
        total += classified + (0.0 if units_are_priced else advanced)
        prices.append(total)
    return torch.tensor(prices)


class _NoModules(ModuleTracker):
    """Tracks nothing: the counter's own tracker hooks into every module that is run, in other threads too."""

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _counted(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with torch.no_grad(), counter:
        result = run(*arguments)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() / 2, result
