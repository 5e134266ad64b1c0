"""Gates that stay alive: losses and samplers that every gate-based method can take.

A gate that treats all images alike is a switch, and a network of switches a static one. Each setting here
works against that in the way of one paper: batch-shaping (Bejnordi et al., ICLR 2020) with its complexity
loss, entropies of decisions (Krause et al., NeurIPS 2010), variances of probabilities (Bengio et al. 2015),
exploration that never ends (BlockDrop, CVPR 2018), gradients of less variance (Paulus et al., ICLR 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sidestep.errors import RecipeError
from sidestep.losses.batch_shaping import batch_shaping_loss
from sidestep.losses.budget import global_mean
from sidestep.losses.information import conditional_entropy, marginal_gap, variance_gap


@dataclass(frozen=True, slots=True, kw_only=True)
class AliveConfig:
    """Settings of gates that stay alive; all weights are of sums over gates, and 0 switches a term off.

    Args:
        shaping: weight gamma of the batch-shaping loss; the paper begins with 0.75 and lets it fall to 0.
        prior: a and b of its Beta prior, whose mean a / (a + b) is a rate of execution.
        complexity: weight of the mean number of executed units, the L0 norm of gates that are drawn; the
            paper lets it rise from 0 while shaping falls.
        marginal: weight of the nats that are missing from the entropy of a gate over the batch.
        conditional: weight of the mean entropy of a gate's decision about one image: above 0 gates become
            sure, with the weight of `marginal` their mutual information with the image grows; below 0 they
            stay undecided, as policies do.
        variance: weight of what is missing from the variance of a gate's probability over the batch.
        explore: share of the decisions in training that are drawn as if all options were equal, so that noise
            never ends; with BlockDrop's alpha it is 2 (1 - alpha).
        draws: Gumbel noises, all with the same decision, over which a straight-through gradient is averaged;
            1 is the usual estimator.
    """

    # Phases and ramps may change what no part of a network is built from.
    moves: ClassVar[bool] = True

    shaping: float = 0.0
    prior: tuple[float, float] = (0.6, 0.4)
    complexity: float = 0.0
    marginal: float = 0.0
    conditional: float = 0.0
    variance: float = 0.0
    explore: float = 0.0
    draws: int = 1

    def __post_init__(self) -> None:
        for name in ("shaping", "complexity", "marginal", "variance"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be at least 0, got {getattr(self, name)}; 0 switches it off")
        if min(self.prior) <= 0:
            raise RecipeError(f"prior must be above 0, got {list(self.prior)}; the paper uses 0.6 and 0.4")
        if not 0 <= self.explore < 1:
            raise RecipeError(f"explore must be in [0, 1), got {self.explore}; 0.4 is BlockDrop's")
        if self.draws < 1:
            raise RecipeError(f"draws must be at least 1, got {self.draws}; 1 is the usual gradient")


def check_alive(config: AliveConfig, *, by_share: bool, drawn: bool, rounded: bool) -> None:
    """Refuse settings that have no effect beside a method's others.

    Args:
        config: settings of gates that stay alive.
        by_share: whether gates decide by share of the batch, where logits are ranks and no probabilities.
        drawn: whether decisions are drawn in training.
        rounded: whether gates are rounded from Gumbel noise with a straight-through gradient.

    Raises:
        RecipeError: naming the first.
    """
    if by_share and config != AliveConfig():
        raise RecipeError(
            "alive has no effect on gates that decide by share of the batch, got settings of its own; "
            "drop them"
        )
    if not drawn and config.explore != 0:
        raise RecipeError(
            f"alive.explore belongs to decisions that are drawn, got {config.explore}; drop it, or set it "
            "where they are"
        )
    if not rounded and config.draws != 1:
        raise RecipeError(
            f"alive.draws belongs to gates that are rounded from noise, got {config.draws}; drop it"
        )


def alive_terms(logits: Tensor | None, config: AliveConfig) -> dict[str, Tensor]:
    """Return the weighted terms that are switched on, all scalars.

    Args:
        logits: (B, L, K) of the gates. One that cannot but decide as it does, by an infinite logit, adds
            nothing.
        config: the weights.
    """
    weights = {
        "shaping": config.shaping,
        "complexity": config.complexity,
        "marginal": config.marginal,
        "conditional": config.conditional,
        "variance": config.variance,
    }
    if logits is None or not any(weights.values()):
        return {}
    forced = logits.detach().isinf().any(dim=2).any(dim=0)
    # No `where` with a number, which a GPU would fetch from the host.
    logits = logits.float().masked_fill(forced.unsqueeze(1), 0.0)
    margins = logits[..., 1:].logsumexp(dim=2) - logits[..., 0]
    losses = {
        "shaping": lambda: batch_shaping_loss(margins, config.prior),
        "complexity": lambda: global_mean(torch.sigmoid(margins)),
        "marginal": lambda: marginal_gap(logits),
        "conditional": lambda: conditional_entropy(logits),
        "variance": lambda: variance_gap(margins),
    }
    chosen = {name: weight for name, weight in weights.items() if weight}
    return {name: weight * losses[name]().masked_fill(forced, 0.0).sum() for name, weight in chosen.items()}
