"""Routers that are given the budget: one network for all budgets.

URNet (Lee, Chang and Kwak, AAAI 2020) gives every gate the scale that is wanted beside the features, and
draws it anew in training. Here the first features of every gate, h, become h (1 + scale(b)) + shift(b), which
keeps every kind of gate as it is; at one budget that is an affine map, which the layer in front takes in, and
the gate is an ordinary one.

Training follows the sandwich rule of Yu and Huang (ICCV 2019, "Universally Slimmable Networks"): every step
runs its images with the largest budget, the smallest and two random ones, see `budgets_of_step`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sidestep.errors import ExecutionError, RecipeError
from sidestep.layers.constant import constant
from sidestep.routing.router import Router
from sidestep.routing.samplers import Noise, Sampler

# Of which every step runs its images: the largest budget, the smallest, two random ones.
NUM_BUDGETS = 4
# Budgets between which scale and shift are straight lines.
_KNOTS = 5

Layer = Callable[[Tensor], Tensor]
# Budgets are mean executions of units, or MACs with those of the routers, as fractions of all.
BudgetScope = Literal["unit", "network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetsConfig:
    """Settings of a network for all budgets.

    Args:
        low: smallest budget, in (0, 1), of what the method's target is; None is a network for one budget.
        distillation: share of the full budget's soft answers in what smaller budgets learn; the rest are the
            labels. 1 is US-Net's in-place distillation.
    """

    low: float | None = None
    distillation: float = 1.0

    def __post_init__(self) -> None:
        if self.low is not None and not 0 < self.low < 1:
            raise RecipeError(f"low must be in (0, 1), got {self.low}; 0.4 is usual")
        if not 0 <= self.distillation <= 1:
            raise RecipeError(f"distillation must be in [0, 1], got {self.distillation}; 1 is US-Net's")
        if self.low is None and self.distillation != 1:
            raise RecipeError(
                f"distillation has no effect for one budget, got {self.distillation}; set low, or drop it"
            )


def budgets_of_step(low: float, noise: Noise, device: torch.device) -> Tensor:
    """Return the (4,) budgets with which a step runs its images: 1, low, r, and low + 1 - r.

    r is uniform in [low, 1), the same in all processes. US-Nets draw two widths by themselves; here the
    second mirrors the first, so that what a step executes is the same in all steps, a shape that a GPU can
    record.

    Args:
        low: smallest budget.
        noise: source of the draw.
        device: of the budgets.
    """
    drawn = low + (1 - low) * noise.common(1, device)[0, 0]
    ends = constant((1.0, low), device)
    return torch.cat([ends, torch.stack([drawn, low + 1 - drawn])])


class BudgetedRouter(Router):
    """A router that is given the budget.

    Attributes:
        config: says which budgets it is trained for.
        asked: budget that it decides by when it is given none.
        scope: what its budgets are fractions of.
    """

    plan_obstacle = (
        "plans have one budget, and this router is given it; set network.router = network.router.at(0.6)"
    )

    config: BudgetsConfig
    asked: float
    scope: BudgetScope

    @property
    def low(self) -> float:
        """Return the smallest budget."""
        assert self.config.low is not None  # routers are built for settings that have one
        return self.config.low

    def begin(self, images: Tensor) -> Any:
        return self.begin_at(images, constant((self.asked,), images.device))

    def begin_at(self, images: Tensor, budgets: Tensor) -> Any:
        """Return the state before the first unit for (G,) budgets, each of as many images, in order."""
        raise NotImplementedError

    def sampler_at(self, settings: Any, budgets: Tensor) -> Sampler | None:
        """Return who turns logits into weights in training, or None where the method says that."""
        return None

    def at(self, budget: float) -> Router:
        """Return a router that decides at one budget, and knows no other; it shares no weights with this.

        Raises:
            ExecutionError: for a budget that it is not trained for.
        """
        raise NotImplementedError

    def check(self, budget: float) -> None:
        """Refuse a budget that it is not trained for.

        Raises:
            ExecutionError: naming it.
        """
        if not self.low <= budget <= 1:
            raise ExecutionError(
                f"budget must be one that the routers are trained for, {self.low} to 1, got {budget}"
            )


class AtBudgets(Router):
    """A router that is given the budgets of a step.

    Args:
        router: which.
        budgets: (G,), each of as many images, in order.
    """

    def __init__(self, router: BudgetedRouter, budgets: Tensor) -> None:
        super().__init__()
        self.router, self.budgets = router, budgets

    def begin(self, images: Tensor) -> Any:
        return self.router.begin_at(images, self.budgets)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.router(unit, features, state)
        return logits, state

    def sampler(self, settings: Any) -> Sampler | None:
        return self.router.sampler_at(settings, self.budgets)

    def take(self, state: Any, rows: Tensor) -> Any:
        return self.router.take(state, rows)


class Gates(Protocol):
    """Gates whose first features a budget can modulate: what `BudgetRouter` needs of a router."""

    def first_layers(self) -> nn.ModuleList:
        """Return a Sequential for every unit, linear and perhaps BatchNorm, or Identity without a gate."""
        ...

    def begin(self, images: Tensor, layers: Sequence[Layer] | None = None) -> Any:
        """Return the state before the first unit, with other layers in place of those."""
        ...


class BudgetRouter(BudgetedRouter):
    """Gates of which every budget scales and shifts the first features.

    scale(b) and shift(b) are straight lines between values at five budgets, which are learnt and start at 0.

    Args:
        gates: a router that is `Gates`.
        config: settings, with a smallest budget.
        asked: budget that it decides by when it is given none.
        scope: of the budgets.
    """

    def __init__(self, gates: Any, config: BudgetsConfig, *, asked: float, scope: BudgetScope) -> None:
        super().__init__()
        self.inner, self.config, self.asked, self.scope = gates, config, asked, scope
        self.widths = [_width(layer) for layer in gates.first_layers()]
        self.modulation = nn.Parameter(torch.zeros(_KNOTS, 2 * sum(self.widths)))

    def begin_at(self, images: Tensor, budgets: Tensor) -> Any:
        pairs = zip(self.inner.first_layers(), self._films(budgets), strict=True)
        layers = [_Modulated(layer, *film) if len(film[0][0]) else layer for layer, film in pairs]
        return self.inner.begin(images, layers)

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.inner(unit, features, state)
        return logits, state

    def take(self, state: Any, rows: Tensor) -> Any:
        return self.inner.take(state, rows)

    def at(self, budget: float) -> Router:
        self.check(budget)
        gates: Router = copy.deepcopy(self.inner)
        given: Any = gates
        films = self._films(torch.tensor([budget], device=self.modulation.device))
        with torch.no_grad():
            for layer, (scale, shift) in zip(given.first_layers(), films, strict=True):
                if scale.numel():
                    _take_in(layer, 1 + scale[0], shift[0])
        return gates

    def _films(self, budgets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (G, width) scale and shift of every unit."""
        near = nearness(budgets, self.low, _KNOTS)
        # Not as a matrix product: a batch computes this once, and no image pays for it.
        both = (near.unsqueeze(2) * self.modulation).sum(dim=1)
        films: Sequence[Tensor] = torch.split(both, [2 * width for width in self.widths], dim=1)
        return [(film[:, :width], film[:, width:]) for film, width in zip(films, self.widths, strict=True)]


def nearness(budgets: Tensor, low: float, num_knots: int) -> Tensor:
    """Return the (G, K) weights of evenly spaced budgets, from low to 1, in a line between neighbours.

    >>> nearness(torch.tensor([0.5, 0.625]), 0.5, 3)
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000]])

    Args:
        budgets: (G,) in [low, 1].
        low: the first of them.
        num_knots: K.
    """
    places = constant(tuple(range(num_knots)), budgets.device)
    place = (budgets - low) * ((num_knots - 1) / (1 - low))
    return (1 - (place.unsqueeze(1) - places).abs()).clamp_min(0)


@dataclass(frozen=True, slots=True)
class _Modulated:
    """A gate's first layer, whose features (G, width) scale and shift modulate."""

    layer: nn.Module
    scale: Tensor
    shift: Tensor

    def __call__(self, pooled: Tensor) -> Tensor:
        features: Tensor = self.layer(pooled)
        grouped = features.view(len(self.scale), -1, features.shape[1])
        return (grouped * (1 + self.scale.unsqueeze(1)) + self.shift.unsqueeze(1)).flatten(0, 1)


def _width(layer: Any) -> int:
    return int(layer[0].out_features) if hasattr(layer, "__len__") else 0


def _take_in(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Let the last part of a layer compute what scale and shift would make of it."""
    last = layer[-1]
    last.weight.mul_(scale if last.weight.dim() == 1 else scale.unsqueeze(1))
    last.bias.mul_(scale).add_(shift)
