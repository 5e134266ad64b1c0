"""The cost book: what every part of a network costs, in MACs, measured once by running it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sidestep.types import CostModel


def measure_cost(model: nn.Module, input_size: tuple[int, int]) -> CostModel:
    """Return the price of every option of every unit for one image of `input_size` (height, width).

    One multiply-add counts once. Convolutions and matrix products count; BatchNorm, ReLU, pooling and
    additions are free. Shapes alone are run (on the meta device), so a large network takes milliseconds.

    Args:
        model: a routed network: it has a `backbone` (stem, units, head) and a `router`; left untouched.
        input_size: height and width of the images.
    """
    # Gradients are off, since the counter cannot follow views of parameters (attention pooling of a ViT).
    shadow: Any = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    router = shadow.router
    images = torch.empty(1, 3, *input_size, device="meta")
    fixed, x = _counted(shadow.backbone.stem, images)
    begun, state = _counted(router.begin, images) if router is not None else (0.0, None)
    options: list[list[float]] = []
    routers: list[float] = []
    for index, unit in enumerate(shadow.backbone.units):
        if router is not None:
            macs, (_, state) = _counted(router, index, x, state)
            # What is asked before the first unit (a policy network, say) is paid by every image as well.
            routers.append(macs + (0.0 if routers else begun))
        runs = [_counted(unit.run, option, x) for option in range(unit.num_options)]
        options.append([macs for macs, _ in runs])
        x = runs[-1][1]
    head, _ = _counted(shadow.backbone.head, x)
    return CostModel(
        fixed_macs=fixed + head,
        option_macs=torch.tensor(options),
        router_macs=torch.tensor(routers or [0.0] * len(options)),
    )


def _counted(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run(*arguments)
    # torch counts a multiply-add as two operations.
    return counter.get_total_flops() / 2, result
