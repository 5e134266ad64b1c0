"""CoDiNet: consistent paths for views of one image, diverse paths for different images (TPAMI 2021).

The loader shows several augmented views of every image. The consistency loss pulls the paths of views
together, the diversity loss pushes the mean paths of images apart, and a cost term asks for a number of
executed blocks. The released code's optional fine-tuning, hard decisions with frozen gates, is a phase with
`train: blocks` and `settings: {gate_mode: argmax}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.losses.budget import unit_count_loss
from sidestep.losses.views import consistency_loss, diversity_loss
from sidestep.methods.alive import AliveConfig, alive_terms, check_alive
from sidestep.methods.method import Method, check_two_options, check_unused
from sidestep.routing.budget_router import BudgetsConfig
from sidestep.routing.budget_share import check_budgets, for_all_budgets
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import GumbelSoftmax, Noise, Sampler, argmax
from sidestep.routing.seeing_router import seeing
from sidestep.routing.share import ShareConfig, ShareRouter, check_share
from sidestep.types import Batch, CostModel, RoutedOutput


def _gate() -> GateConfig:
    return GateConfig(hidden=None, batch_norm=False, activation=True, bias=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoDiNetConfig:
    """Settings of CoDiNet.

    Args:
        num_units: T, the mean number of executed blocks.
        cost_weight: factor of |executed - T|.
        path_weight: lambda, factor of consistency plus diversity; 0 switches both off.
        consistency_margin: distance from the centre of an image's views that costs nothing.
        diversity_margin: distance beyond which two images cost nothing.
        gate_mode: "soft" mixes outputs, "hard" rounds with a straight-through gradient, "argmax" decides
            without noise and without a gradient for the gates, "share" executes the share num_units / L of
            every batch, see `routing.share`; there is no cost term then.
        closing: how far shares have moved from 1 to what they are, for ramps; with gate_mode "share".
        share: settings of gates by share of the batch.
        budgets: settings of a network for all budgets, which are T / L; `num_units` is then that of an
            evaluation that asks for none.
        alive: losses and noise against gates that treat all images alike, see `methods.alive`.
        sees_exits: gates see how certain the last early exit in front of them is (`model.exits`), see
            `routing.seeing_router`.
        gate: the gate; the paper's has a non-linearity, the released code's none (`activation: false`).
    """

    num_units: float
    cost_weight: float = 0.05
    path_weight: float = 0.2
    consistency_margin: float = 0.2
    diversity_margin: float = 0.5
    gate_mode: Literal["soft", "hard", "argmax", "share"] = "soft"
    closing: float = 1.0
    share: ShareConfig = field(default_factory=ShareConfig)
    budgets: BudgetsConfig = field(default_factory=BudgetsConfig)
    alive: AliveConfig = field(default_factory=AliveConfig)
    sees_exits: bool = False
    gate: GateConfig = field(default_factory=_gate)

    def __post_init__(self) -> None:
        for name in ("num_units", "cost_weight", "path_weight", "consistency_margin", "diversity_margin"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be at least 0, got {getattr(self, name)}")
        check_share(self.share, self.closing, used=self.gate_mode == "share")
        # A phase may decide by arg-max after others that draw.
        rounded = self.gate_mode in ("hard", "argmax")
        check_alive(self.alive, by_share=self.gate_mode == "share", drawn=True, rounded=rounded)
        if self.gate_mode == "share":
            check_unused(self, "gate_mode 'share'", cost_weight=0.05)
        if self.budgets.low is not None:
            check_unused(self, "budgets.low", sees_exits=False)


def _router(backbone: Backbone, settings: CoDiNetConfig) -> Router:
    units = backbone.units
    if settings.num_units > len(units):
        raise RecipeError(
            f"num_units must be at most the network's {len(units)} blocks, got {settings.num_units}; "
            "0.6 of them is a usual budget"
        )
    router = GateRouter([unit.in_channels for unit in units], settings.gate, num_options=backbone.num_options)
    # As in the released code; a gate that is given a bias starts near it instead.
    layers = [router.inner] if settings.gate.bias is not None else [router.inner, router.decide]
    for module in (part for layer in layers for part in layer.modules()):
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    share, count = settings.share if settings.gate_mode == "share" else None, len(units)
    if settings.budgets.low is not None:
        check_two_options(backbone, "codinet with budgets")
        asked = settings.num_units / count
        check_budgets(settings.budgets, settings.share, asked, "num_units over the number of blocks")
        return for_all_budgets(router, settings.budgets, count, asked=asked, share=share)
    inner = seeing(router, count, settings.sees_exits, num_options=backbone.num_options)
    if share is None:
        return inner
    check_two_options(backbone, "codinet with gate_mode 'share'")
    return ShareRouter(inner, count, lambda now: [now.num_units / count] * count, share)


def _sampler(settings: CoDiNetConfig, noise: Noise) -> Sampler:
    if settings.gate_mode in ("argmax", "share"):
        return argmax  # by shares the router says who samples in training
    hard, alive = settings.gate_mode == "hard", settings.alive
    return GumbelSoftmax(noise=noise, hard=hard, explore=alive.explore, draws=alive.draws)


def _noisy_sampler(settings: CoDiNetConfig, noise: Noise) -> Sampler:
    """Return what the released code evaluates with: noisy gates, rounded whatever training did."""
    return GumbelSoftmax(noise=noise, hard=True)


def _losses(
    output: RoutedOutput, batch: Batch, cost: CostModel, settings: CoDiNetConfig
) -> dict[str, Tensor]:
    decisions = output.decisions
    terms = {}
    if settings.gate_mode != "share":
        count = decisions.weights.shape[1]
        wanted = settings.num_units if batch.budget is None else count * batch.budget
        terms["cost"] = settings.cost_weight * unit_count_loss(decisions, wanted)
    if settings.path_weight > 0:
        # A path is made of the weights of all options, skip and execute alike (2N numbers).
        soft = decisions.weights if decisions.relaxed is None else decisions.relaxed
        paths = soft.flatten(1)
        terms["consistency"] = settings.path_weight * consistency_loss(
            paths, batch.views, margin=settings.consistency_margin
        )
        terms["diversity"] = settings.path_weight * diversity_loss(
            paths, batch.views, margin=settings.diversity_margin
        )
    return terms | alive_terms(decisions.logits, settings.alive)


CODINET = Method(
    name="codinet",
    summary="CoDiNet (TPAMI 2021): consistent paths over views of an image, diverse ones over images",
    settings=CoDiNetConfig,
    router=_router,
    sampler=_sampler,
    noisy_sampler=_noisy_sampler,
    losses=_losses,
)
