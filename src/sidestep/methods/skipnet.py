"""SkipNet (ECCV 2018): gates after every block decide about the next, trained supervised, then by reward.

In the supervised phase gates round with a straight-through gradient and there is no sparsity term. In the
hybrid phase they are drawn from their probabilities, and a policy gradient whose reward is skipping, ended by
the negative cross-entropy, is added to the task loss: `settings: {decisions: sampled, policy_weight: 2.56}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.losses.policy_gradient import leave_one_out_advantage, reinforce_loss, skipping_return
from sidestep.methods.alive import AliveConfig, alive_terms, check_alive
from sidestep.methods.method import Method, check_maps, check_two_options
from sidestep.routing.feedforward import FeedForwardRouter
from sidestep.routing.recurrent import RecurrentRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import (
    Categorical,
    GumbelSoftmax,
    Noise,
    Sampler,
    argmax,
    explored_log_probs,
    log_softmax,
)
from sidestep.routing.seeing_router import seeing
from sidestep.routing.share import ShareConfig, ShareRouter, check_share
from sidestep.types import Batch, CostModel, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipNetConfig:
    """Settings of SkipNet.

    Args:
        gate: "recurrent" (RNN gate), "feedforward1" (FFGate-I, ResNet-38 and 74) or "feedforward2"
            (FFGate-II, ResNet-110).
        width: of the recurrent gate.
        decisions: in training: "hard" rounds with a straight-through gradient, "soft" mixes outputs,
            "sampled" draws without a gradient, for the policy gradient, "share" executes a share of every
            batch at every gate, see `routing.share`.
        policy_weight: factor of the policy gradient, averaged over the batch. The CIFAR code has 0.01 on the
            batch's sum, so 0.01 x batch size here, the ImageNet code 0.01 on the mean.
        alpha: reward of skipping every gate: 0.1 on CIFAR, and on ImageNet 0.01 together with scale_task.
        scale_task: whether alpha over the number of gates scales the cross-entropy that ends the return too,
            as in the ImageNet code: a skipped gate is then worth as much as a whole nat of cross-entropy,
            whatever alpha is.
        gamma: discount of rewards per gate.
        baseline: what returns are compared with: "none" as in the paper, or "others", the mean return of the
            other views of the same image (`data.views`), of images with one view that of the batch's others.
        closing: how far shares have moved from 1 to what they are, for ramps; with decisions "share".
        share: settings of gates by share of the batch.
        alive: losses and exploration against gates that treat all images alike, see `methods.alive`.
        sees_exits: gates see how certain the last early exit in front of them is (`model.exits`), see
            `routing.seeing_router`.
        sharpness: factor on the logits that are drawn from; 20 makes the policy nearly deterministic, as the
            ImageNet code does before its hybrid phase.
    """

    gate: Literal["recurrent", "feedforward1", "feedforward2"] = "recurrent"
    width: int = 10
    decisions: Literal["hard", "soft", "sampled", "share"] = "hard"
    policy_weight: float = 0.0
    alpha: float = 0.1
    scale_task: bool = False
    gamma: float = 1.0
    baseline: Literal["none", "others"] = "none"
    sharpness: float = 1.0
    closing: float = 1.0
    share: ShareConfig = field(default_factory=ShareConfig)
    alive: AliveConfig = field(default_factory=AliveConfig)
    sees_exits: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise RecipeError(f"width must be at least 1, got {self.width}; the paper uses 10")
        if self.gate != "recurrent" and self.width != 10:
            raise RecipeError(f"width belongs to the recurrent gate, got {self.width} with {self.gate!r}")
        if not 0 <= self.gamma <= 1:
            raise RecipeError(f"gamma must be in [0, 1], got {self.gamma}; the paper uses 1")
        if self.policy_weight < 0 or self.alpha < 0 or self.sharpness <= 0:
            raise RecipeError(
                "policy_weight and alpha must be at least 0 and sharpness above 0, got "
                f"{self.policy_weight}, {self.alpha} and {self.sharpness}"
            )
        if self.policy_weight > 0 and self.decisions != "sampled":
            raise RecipeError(
                f"policy_weight needs decisions that were drawn, got {self.policy_weight} with "
                f"{self.decisions!r}; set decisions: sampled"
            )
        check_share(self.share, self.closing, used=self.decisions == "share", has_target=False)
        drawn = self.decisions == "sampled"
        check_alive(self.alive, by_share=self.decisions == "share", drawn=drawn, rounded=False)


def _router(backbone: Backbone, settings: SkipNetConfig) -> Router:
    check_two_options(backbone, "skipnet")
    channels = [unit.in_channels for unit in backbone.units]
    if settings.gate == "recurrent":
        router: Router = RecurrentRouter(channels, width=settings.width)
    else:
        check_maps(backbone, f"method skipnet with gate {settings.gate!r}")
        router = FeedForwardRouter(channels, deep=settings.gate == "feedforward1")
    # The first unit has no gate.
    count = len(channels)
    router = seeing(router, count, settings.sees_exits, open=[0])
    if settings.decisions != "share":
        return router
    return ShareRouter(router, count, lambda now: [now.share.rate] * count, settings.share, open=[0])


def _sampler(settings: SkipNetConfig, noise: Noise) -> Sampler:
    if settings.decisions == "share":
        return argmax  # in training the router says who samples
    if settings.decisions == "sampled":
        return Categorical(noise=noise, log_probs=partial(_policy, settings=settings))
    return GumbelSoftmax(noise=noise, noise_scale=0.0, hard=settings.decisions == "hard")


def _policy(logits: Tensor, settings: SkipNetConfig) -> Tensor:
    """Return the log-probabilities that decisions are drawn from."""
    sharp, explore = logits * settings.sharpness, settings.alive.explore
    return explored_log_probs(sharp, explore) if explore else log_softmax(sharp)


def _losses(
    output: RoutedOutput, batch: Batch, cost: CostModel, settings: SkipNetConfig
) -> dict[str, Tensor]:
    decisions = output.decisions
    if decisions.logits is None:
        return {}
    terms = alive_terms(decisions.logits * settings.sharpness, settings.alive)
    if settings.policy_weight > 0:
        # The first unit has no gate.
        logits, weights = decisions.logits[:, 1:], decisions.weights[:, 1:]
        task_logits = output.logits.float()
        task = F.cross_entropy(task_logits, batch.targets(task_logits.shape[1]), reduction="none")
        returns = skipping_return(
            weights, task, alpha=settings.alpha, gamma=settings.gamma, scale_task=settings.scale_task
        )
        if settings.baseline == "others":
            returns = leave_one_out_advantage(returns, batch.views)
        policy = reinforce_loss(_policy(logits, settings), weights, returns)
        terms["policy"] = settings.policy_weight * policy
    return terms


SKIPNET = Method(
    name="skipnet",
    summary="SkipNet (ECCV 2018): gates after each block, supervised, then hybrid reinforcement learning",
    settings=SkipNetConfig,
    router=_router,
    sampler=_sampler,
    losses=_losses,
)
