"""ConvNet-AIG: a gate in front of every block, held to a target rate (ECCV 2018).

Gates see the pooled input of their block (section 2 of its specification), decide by straight-through
Gumbel-softmax, and scale the residual branch only: the network's `mix` is "branch". The target-rate loss
keeps every gate's mean rate near its target; a block whose target is 1 has no gate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.losses.budget import cost_loss, target_rate_loss
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
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import GumbelSoftmax, Noise, Sampler, argmax
from sidestep.routing.seeing_router import seeing
from sidestep.routing.share import ShareConfig, ShareRouter, check_share
from sidestep.types import Batch, CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNetAigConfig:
    """Settings of ConvNet-AIG.

    Args:
        target: target rate t of every gate.
        schedule: target rate of every block instead, in order; 1 builds the block without a gate.
        cost_weight: factor of the target-rate loss: 2 on CIFAR, 1 on ImageNet.
        network_target: besides, the fraction of the static network's MACs that the network is to have on
            average, routers included, while rates of blocks lean towards their targets; None asks for none.
        network_weight: factor of (mean fraction - network_target)^2; 100 holds it.
        temperature: tau of the Gumbel-softmax.
        gate_mode: "hard" as in the paper, or "share": targets are shares of every batch that blocks execute,
            see `routing.share`, and there is no target-rate loss.
        closing: how far shares have moved from 1 to what they are, for ramps; with gate_mode "share".
        share: settings of gates by share of the batch.
        budgets: settings of a network for all budgets; `target` is then that of an evaluation that asks for
            none.
        alive: losses and noise against gates that treat all images alike, see `methods.alive`.
        sees_exits: gates see how certain the last early exit in front of them is (`model.exits`), see
            `routing.seeing_router`.
        gate: the gate.
    """

    target: float = 0.6
    schedule: list[float] | None = None
    cost_weight: float = 2.0
    network_target: float | None = None
    network_weight: float = 100.0
    temperature: float = 1.0
    gate_mode: Literal["hard", "share"] = "hard"
    closing: float = 1.0
    share: ShareConfig = field(default_factory=ShareConfig)
    budgets: BudgetsConfig = field(default_factory=BudgetsConfig)
    alive: AliveConfig = field(default_factory=AliveConfig)
    sees_exits: bool = False
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        for name, rates in (("target", [self.target]), ("schedule", self.schedule or [])):
            if any(not 0 <= rate <= 1 for rate in rates):
                raise RecipeError(
                    f"{name} must be in [0, 1], got {getattr(self, name)}; the paper uses 0.4 to 0.7"
                )
        if self.cost_weight < 0:
            raise RecipeError(f"cost_weight must be at least 0, got {self.cost_weight}; the paper uses 2")
        if self.temperature <= 0:
            raise RecipeError(f"temperature must be above 0, got {self.temperature}; the paper uses 1")
        check_network_target(self.network_target, self.network_weight)
        check_share(self.share, self.closing, used=self.gate_mode == "share")
        check_budgets(self.budgets, self.share, self.target)
        if self.budgets.low is not None:
            check_unused(self, "budgets.low", schedule=None, network_target=None, sees_exits=False)
        check_alive(self.alive, by_share=self.gate_mode == "share", drawn=True, rounded=True)
        if self.share.shares is not None:
            raise RecipeError(
                "share.shares has no effect under convnet_aig, whose schedule says them; set that"
            )
        if self.gate_mode == "share":
            check_unused(self, "gate_mode 'share'", cost_weight=2.0, temperature=1.0, network_target=None)

    def rates(self, num_units: int) -> list[float]:
        """Return the target rate of every unit.

        Raises:
            RecipeError: when the schedule does not name every unit once.
        """
        if self.schedule is None:
            return [self.target] * num_units
        return named_once("schedule", self.schedule, num_units)


def _router(backbone: Backbone, settings: ConvNetAigConfig) -> Router:
    num_units, rates = len(backbone.units), settings.rates(len(backbone.units))
    gates = GateRouter(
        [unit.in_channels for unit in backbone.units],
        settings.gate,
        num_options=backbone.num_options,
        # With another budget a block can be skipped that the target would always execute.
        gated=[rate < 1 or settings.budgets.low is not None for rate in rates],
    )
    share = settings.share if settings.gate_mode == "share" else None
    if settings.budgets.low is not None:
        check_two_options(backbone, "convnet_aig with budgets")
        return for_all_budgets(gates, settings.budgets, num_units, asked=settings.target, share=share)
    options, ungated = backbone.num_options, [unit for unit, rate in enumerate(rates) if rate == 1]
    inner = seeing(gates, num_units, settings.sees_exits, num_options=options, open=ungated)
    if share is None:
        return inner
    check_two_options(backbone, "convnet_aig with gate_mode 'share'")
    return ShareRouter(inner, num_units, lambda now: now.rates(num_units), share, open=ungated)


def _sampler(settings: ConvNetAigConfig, noise: Noise) -> Sampler:
    if settings.gate_mode == "share":
        return argmax  # in training the router says who samples
    return GumbelSoftmax(
        noise=noise,
        temperature=settings.temperature,
        hard=True,
        explore=settings.alive.explore,
        draws=settings.alive.draws,
    )


def _losses(
    output: RoutedOutput, batch: Batch, cost: CostModel, settings: ConvNetAigConfig
) -> dict[str, Tensor]:
    if settings.gate_mode == "share":
        return {}
    decisions = output.decisions
    rates = settings.rates(decisions.weights.shape[1]) if batch.budget is None else batch.budget
    terms = {"cost": settings.cost_weight * target_rate_loss(decisions, rates)}
    if settings.network_target is not None:
        network = cost_loss(decisions, settings.network_target, cost, scope="network")
        terms["network_cost"] = settings.network_weight * network
    return terms | alive_terms(decisions.logits, settings.alive)


CONVNET_AIG = Method(
    name="convnet_aig",
    summary="ConvNet-AIG (ECCV 2018): a gate per block, straight-through Gumbel, target rates",
    settings=ConvNetAigConfig,
    router=_router,
    sampler=_sampler,
    losses=_losses,
    budget=budget_name,
)
