"""Random dropping: units are executed by chance, the control that every router has to beat.

Units are dropped in training and in evaluation alike. With `evaluate: all` they are dropped in training alone
and the whole network is evaluated; together with `decay: linear`, where the keep rate falls from 1 at the
first unit, that is stochastic depth (Huang et al., ECCV 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.methods.method import Method, check_two_options, noise_free
from sidestep.routing.chance import ChanceRouter
from sidestep.routing.router import ConstantRouter, Router
from sidestep.routing.samplers import Categorical, Noise, Sample, Sampler, argmax, log_softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDropConfig:
    """Settings of random dropping.

    Args:
        keep_rate: mean probability of executing a unit.
        decay: "none" gives all units the same, "linear" falls from 1 to 2 x keep_rate - 1.
        evaluate: "dropped" as in training, or "all" units: stochastic depth.
        seed: of the dice that decide about an image in training and evaluation; with evaluate "all" those of
            training.seed are thrown instead.
    """

    keep_rate: float = 0.6
    decay: Literal["none", "linear"] = "none"
    evaluate: Literal["dropped", "all"] = "dropped"
    seed: int = 0

    def __post_init__(self) -> None:
        least = 0.5 if self.decay == "linear" else 0.0
        if not least <= self.keep_rate <= 1:
            raise RecipeError(
                f"keep_rate must be in [{least:g}, 1] with decay {self.decay!r}, got {self.keep_rate}"
            )
        if self.evaluate == "dropped":
            return
        if self.keep_rate == least:
            raise RecipeError(
                f"keep_rate must be above {least:g} with decay {self.decay!r} and evaluate 'all', got "
                f"{self.keep_rate}; a unit that is never trained would be evaluated"
            )
        if self.seed:
            raise RecipeError(f"seed has no effect with evaluate 'all', got {self.seed}; set training.seed")

    def rates(self, num_units: int) -> list[float]:
        """Return the keep rate of every unit."""
        if self.decay == "none" or num_units == 1:
            return [self.keep_rate] * num_units
        step = 2 * (1 - self.keep_rate) / (num_units - 1)
        return [1 - step * unit for unit in range(num_units)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """Draws whether a unit is executed, and divides the weight of executing it by the probability of that.

    The mean weight is then 1, that of evaluation. Huang et al. multiply branches by their probabilities in
    evaluation instead, which is the same function of branches that are as much larger.
    """

    noise: Noise

    def __call__(self, logits: Tensor) -> Sample:
        drawn = Categorical(noise=self.noise)(logits).weights[:, 1]
        rate = log_softmax(logits)[:, 1].exp()
        execute = torch.where(drawn > 0, 1 / rate, 0.0)
        weights = torch.stack([1 - execute, execute], dim=1)
        return Sample(weights, weights)


def _router(backbone: Backbone, settings: RandomDropConfig) -> Router:
    check_two_options(backbone, "random_drop")
    units = backbone.units
    if settings.evaluate == "dropped":
        return ChanceRouter(
            settings.rates(len(units)), seed=settings.seed, in_channels=backbone.image_channels
        )
    if any(getattr(unit, "mix", "branch") == "output" for unit in units):
        raise RecipeError(
            "model.mix must be branch with evaluate 'all', which scales residual branches in training, got "
            "output; set it"
        )
    return ConstantRouter.keep([1.0] * len(units))


def _curriculum(router: Router, settings: RandomDropConfig) -> Router:
    """Return who decides in training, where the network's router may execute everything."""
    if settings.evaluate == "dropped" or not isinstance(router, ConstantRouter):
        return router
    rates = settings.rates(len(router.logits))
    return ConstantRouter.keep(rates, router.logits.device)


def _sampler(settings: RandomDropConfig, noise: Noise) -> Sampler:
    return Survival(noise=noise) if settings.evaluate == "all" else argmax


RANDOM_DROP = Method(
    name="random_drop",
    summary="units dropped by chance, in training and evaluation: the control at equal cost",
    settings=RandomDropConfig,
    router=_router,
    sampler=_sampler,
    noisy_sampler=noise_free,
    curriculum=_curriculum,
    budget=lambda settings: "keep_rate",
)
