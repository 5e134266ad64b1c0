"""RDI-Net: relational routers, sample relation module, uniform sampling warm-up (ICCV 2021).

The method section of the paper, top to bottom: routers that see the features of the routers before them
(section 3.2), Gumbel-softmax decisions (eq. 8, 9), the cost loss (eq. 15) and the rank loss of the Sample
Relation Module (eq. 10 to 12), summed as in eq. 16. Uniform Sampling Warm-up (eq. 14) is a phase of the
recipe with `paths: uniform`. Gamma 0 without warm-up and rank loss is the paper's vanilla network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from sidestep.backbones.backbone import Backbone
from sidestep.data.histogram import HistogramConfig, color_histogram
from sidestep.errors import RecipeError
from sidestep.losses.budget import Scope, cost_loss
from sidestep.losses.paths import Reduction, rank_loss
from sidestep.methods.alive import AliveConfig, alive_terms, check_alive
from sidestep.methods.method import (
    Method,
    budget_name,
    check_network_target,
    check_two_options,
    check_unused,
    named_once,
)
from sidestep.routing.budget_router import BudgetsConfig
from sidestep.routing.budget_share import check_budgets, for_all_budgets
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from sidestep.routing.released_relational import ReleasedRelationalRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import GumbelSoftmax, Noise, Sampler, argmax
from sidestep.routing.seeing_router import seeing
from sidestep.routing.share import ShareConfig, ShareRouter, check_share
from sidestep.types import Batch, CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class SrmConfig:
    """Settings of the Sample Relation Module.

    Args:
        alpha: weight of the rank loss; 0 switches it off. The paper's 0.2 belongs to an unstated reduction.
        margin: phi.
        min_gap: near-tie rule, in mean gaps of an anchor, see `rank_loss`.
        stride: ranks between the two images of a triplet.
        reduction: "mean", "anchor", or "sum" as printed.
        histogram: the mapping H.
    """

    alpha: float = 0.2
    margin: float = 0.5
    min_gap: float = 0.1
    stride: int = 1
    reduction: Reduction = "mean"
    histogram: HistogramConfig = field(default_factory=HistogramConfig)

    def __post_init__(self) -> None:
        for name in ("alpha", "margin", "min_gap"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be at least 0, got {getattr(self, name)}; 0 switches it off")
        if self.stride < 1:
            raise RecipeError(
                f"stride must be at least 1, got {self.stride}; the paper compares neighbours (1)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RdiNetConfig:
    """Settings of RDI-Net.

    Args:
        target: t of the cost loss: the mean execution rate, or with cost_scope "network" the fraction of the
            static network's MACs, routers included.
        cost_weight: lambda of eq. 16.
        schedule: target rate of every unit instead, in order.
        cost_scope: what is compared with t, see `cost_loss`.
        cost_reduction: over units; the paper sums.
        network_target: besides, the fraction of the static network's MACs that the network is to have on
            average, routers included, while rates of units lean towards their targets; None asks for none.
        network_weight: factor of (mean fraction - network_target)^2; 100 holds it.
        gate_mode: "soft" blends as eq. 9, "hard" rounds with a straight-through gradient, "share" executes
            the share `target` of every batch, see `routing.share`; there is no cost loss then.
        temperature: tau of the Gumbel-softmax.
        noise_scale: factor on the Gumbel noise; below 1 the gates are sharper.
        closing: how far shares have moved from 1 to what they are, for ramps; with gate_mode "share".
        share: settings of gates by share of the batch.
        budgets: settings of a network for all budgets; `target` is then that of an evaluation that asks for
            none.
        alive: losses and noise against gates that treat all images alike, see `methods.alive`.
        sees_exits: gates see how certain the last early exit in front of them is (`model.exits`), see
            `routing.seeing_router`.
        router: the relational router.
        srm: the Sample Relation Module.
    """

    target: float = 0.5
    schedule: list[float] | None = None
    cost_weight: float = 1.0
    cost_scope: Scope = "unit"
    cost_reduction: Literal["sum", "mean"] = "sum"
    network_target: float | None = None
    network_weight: float = 100.0
    gate_mode: Literal["soft", "hard", "share"] = "soft"
    temperature: float = 1.0
    noise_scale: float = 1.0
    closing: float = 1.0
    share: ShareConfig = field(default_factory=ShareConfig)
    budgets: BudgetsConfig = field(default_factory=BudgetsConfig)
    alive: AliveConfig = field(default_factory=AliveConfig)
    sees_exits: bool = False
    router: RelationalConfig = field(default_factory=RelationalConfig)
    srm: SrmConfig = field(default_factory=SrmConfig)

    def __post_init__(self) -> None:
        for name, rates in (("target", [self.target]), ("schedule", self.schedule or [])):
            if any(not 0.0 <= rate <= 1.0 for rate in rates):
                raise RecipeError(
                    f"{name} must be in [0, 1], got {getattr(self, name)}; 0.5 runs half of the blocks"
                )
        check_network_target(self.network_target, self.network_weight)
        if self.cost_scope == "network" and (self.schedule is not None or self.network_target is not None):
            raise RecipeError(
                "schedule and network_target go with targets of units, got cost_scope 'network'; set "
                "cost_scope: unit"
            )
        if self.cost_weight < 0:
            raise RecipeError(f"cost_weight must be at least 0, got {self.cost_weight}; the paper uses 1")
        if self.temperature <= 0:
            raise RecipeError(f"temperature must be above 0, got {self.temperature}; the usual value is 1")
        if self.noise_scale < 0:
            raise RecipeError(f"noise_scale must be at least 0, got {self.noise_scale}; 1 is Gumbel-softmax")
        check_share(self.share, self.closing, used=self.gate_mode == "share")
        check_budgets(self.budgets, self.share, self.target)
        if self.budgets.low is not None:
            check_unused(self, "budgets.low", schedule=None, network_target=None, sees_exits=False)
        noisy = self.noise_scale > 0
        rounded = noisy and self.gate_mode == "hard"
        check_alive(self.alive, by_share=self.gate_mode == "share", drawn=noisy, rounded=rounded)
        if self.gate_mode == "share":
            costs = {"cost_weight": 1.0, "cost_scope": "unit", "cost_reduction": "sum", "schedule": None}
            noise = {"temperature": 1.0, "noise_scale": 1.0}
            check_unused(self, "gate_mode 'share'", **costs, **noise, network_target=None)

    def targets(self, num_units: int) -> float | list[float]:
        """Return what is compared with execution: one number, or the rate of every unit.

        Raises:
            RecipeError: when the schedule does not name every unit once.
        """
        if self.schedule is None:
            return self.target
        return named_once("schedule", self.schedule, num_units)


def _router(backbone: Backbone, settings: RdiNetConfig) -> Router:
    units = backbone.units
    settings.targets(len(units))
    channels = [unit.in_channels for unit in units]
    if settings.router.form == "released":
        return _released(channels, backbone, settings)
    gates = RelationalRouter(
        channels,
        [unit.stage for unit in units],
        settings.router,
        num_options=backbone.num_options,
    )
    share = settings.share if settings.gate_mode == "share" else None
    if share is not None:
        check_two_options(backbone, "rdi_net with gate_mode 'share'")
    if settings.budgets.low is not None:
        check_two_options(backbone, "rdi_net with budgets")
        return for_all_budgets(
            gates,
            settings.budgets,
            len(units),
            asked=settings.target,
            scope="network" if settings.cost_scope == "network" else "unit",
            share=share,
        )
    inner = seeing(gates, len(units), settings.sees_exits, num_options=backbone.num_options)
    if share is None:
        return inner
    return ShareRouter(inner, len(units), lambda now: [now.target] * len(units), share)


def _released(channels: list[int], backbone: Backbone, settings: RdiNetConfig) -> Router:
    """Return the released code's routers, which take part in nothing that came after it."""
    form = "router.form 'released'"
    if settings.gate_mode == "share":
        raise RecipeError(f"gate_mode must be soft or hard with {form}, got 'share'; change one")
    if settings.budgets.low is not None or settings.sees_exits:
        raise RecipeError(f"budgets.low and sees_exits have no effect with {form}; drop them, or the form")
    return ReleasedRelationalRouter(channels, settings.router, num_options=backbone.num_options)


def _sampler(settings: RdiNetConfig, noise: Noise) -> Sampler:
    if settings.gate_mode == "share":
        return argmax  # in training the router says who samples
    return GumbelSoftmax(
        noise=noise,
        temperature=settings.temperature,
        noise_scale=settings.noise_scale,
        hard=settings.gate_mode == "hard",
        explore=settings.alive.explore,
        draws=settings.alive.draws,
    )


def _losses(output: RoutedOutput, batch: Batch, cost: CostModel, settings: RdiNetConfig) -> dict[str, Tensor]:
    decisions = output.decisions
    terms = {}
    if settings.gate_mode != "share":
        target = settings.targets(decisions.weights.shape[1]) if batch.budget is None else batch.budget
        loss = cost_loss(
            decisions, target, cost, scope=settings.cost_scope, reduction=settings.cost_reduction
        )
        terms["cost"] = settings.cost_weight * loss
    if settings.network_target is not None:
        network = cost_loss(decisions, settings.network_target, cost, scope="network")
        terms["network_cost"] = settings.network_weight * network
    terms |= alive_terms(decisions.logits, settings.alive)
    if settings.srm.alpha > 0 and batch.statistics is not None:
        srm = settings.srm
        terms["rank"] = srm.alpha * rank_loss(
            decisions.relaxed_execution(),
            batch.statistics,
            margin=srm.margin,
            min_gap=srm.min_gap,
            stride=srm.stride,
            reduction=srm.reduction,
        )
    return terms


def _statistics(settings: RdiNetConfig) -> Callable[[Tensor], Tensor] | None:
    if settings.srm.alpha == 0:
        return None
    return partial(color_histogram, config=settings.srm.histogram)


RDI_NET = Method(
    name="rdi_net",
    summary="RDI-Net (ICCV 2021): relational routers, rank loss, uniform sampling warm-up",
    settings=RdiNetConfig,
    router=_router,
    sampler=_sampler,
    losses=_losses,
    statistics=_statistics,
    budget=budget_name,
)
