"""Gates that look at the pooled input of their unit and nothing else: ConvNet-AIG's and CoDiNet's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.errors import RecipeError
from sidestep.layers.pool import global_average_pool
from sidestep.routing.router import Router, always

State = Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Settings of a gate.

    Args:
        hidden: width between the two linear layers; None is the width of the input (CoDiNet), 16 ConvNet-AIG.
        batch_norm: BatchNorm behind the first layer.
        activation: ReLU behind it; without, the two layers are one (CoDiNet's released code).
        bias: bias of skip and execute at the start; (0.1, 2.0) makes P(execute) 0.87, None leaves PyTorch's.
    """

    hidden: int | None = 16
    batch_norm: bool = True
    activation: bool = True
    bias: tuple[float, float] | None = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise RecipeError(f"hidden must be at least 1, got {self.hidden}; ConvNet-AIG uses 16")


class GateRouter(Router):
    """A small network in front of every unit: linear, BatchNorm, ReLU, linear, on the pooled input.

    Args:
        channels: input channels of every unit.
        config: settings.
        num_options: options per unit.
        gated: whether a unit has a gate; one without always executes. None gives every unit a gate.
    """

    def __init__(
        self,
        channels: Sequence[int],
        config: GateConfig | None = None,
        *,
        num_options: int = 2,
        gated: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        config = config or GateConfig()
        self.activation = config.activation
        self.num_options = num_options
        gated = gated or [True] * len(channels)
        pairs = list(zip(channels, gated, strict=True))
        self.inner = nn.ModuleList(_inner(c, config) if gate else nn.Identity() for c, gate in pairs)
        self.decide = nn.ModuleList(
            _decide(config.hidden or c, config, num_options) if gate else nn.Identity() for c, gate in pairs
        )

    def first_layers(self) -> nn.ModuleList:
        """Return the layers in front of the ReLU."""
        return self.inner

    def begin(self, images: Tensor, layers: Sequence[Callable[[Tensor], Tensor]] | None = None) -> State:
        """Return the layers, with others in place of the first ones if there are."""
        # Looked up once per image, as in the relational router.
        first: Sequence[Any] = list(self.inner) if layers is None else layers
        return list(zip(first, self.decide, strict=True))

    def forward(self, unit: int, features: Tensor, state: State) -> tuple[Tensor, State]:
        inner, decide = state[unit]
        if isinstance(decide, nn.Identity):
            return always(self.num_options - 1, self.num_options, features), state
        hidden = inner(global_average_pool(features))
        if self.activation:
            hidden = F.relu(hidden, inplace=True)
        return F.linear(hidden, decide.weight, decide.bias), state


def _inner(channels: int, config: GateConfig) -> nn.Sequential:
    width = config.hidden or channels
    norm = [nn.BatchNorm1d(width)] if config.batch_norm else []
    return nn.Sequential(nn.Linear(channels, width), *norm)


def _decide(width: int, config: GateConfig, num_options: int) -> nn.Linear:
    linear = nn.Linear(width, num_options)
    if config.bias is not None:
        nn.init.normal_(linear.weight, std=0.001)
        with torch.no_grad():
            linear.bias.copy_(torch.tensor([config.bias[0]] + [config.bias[1]] * (num_options - 1)))
    return linear
