"""BlockDrop: a policy network looks at the image once and drops blocks of a pretrained ResNet (CVPR 2018).

First phase (`train: routers`): the policy learns by self-critical policy gradient with entropy, over more and
more of the last blocks (`ramps: {free_units: ...}`), while the network is frozen. Second phase (`train:
all`): policy and network together, without curriculum and entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.backbones.imagenet_resnet import ImageNetResNet, ImageNetResNetConfig
from sidestep.errors import RecipeError
from sidestep.layers.shortcut import Shortcut
from sidestep.losses.policy_gradient import entropy, reinforce_loss, self_critical_advantage
from sidestep.methods.method import Method, check_two_options
from sidestep.routing.policy import LastUnitsRouter, PolicyRouter
from sidestep.routing.router import Router
from sidestep.routing.samplers import Categorical, Noise, Sampler, bounded_log_probs
from sidestep.types import Batch, CostModel, RoutedOutput

# The depth of the policy network for photographs; no ResNet for 32x32 images has it.
_FOR_PHOTOGRAPHS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDropConfig:
    """Settings of BlockDrop.

    Args:
        policy_depth: depth of the policy network: 8, or another 6n + 2, is a ResNet for 32x32 images, 10 the
            one for photographs, with a block in each of its four stages.
        policy_shortcut: where shapes change in a policy for 32x32 images: "pool_end" as in the released code,
            or another one, see `make_shortcut`. That for photographs has projections, as a ResNet-18.
        shrink: factor by which the policy's images are average-pooled; 2 on ImageNet.
        alpha: bound of the probabilities that training draws from, in [0.5, 1]; 0.8 keeps them in [0.2, 0.8].
        penalty: reward of a wrong prediction; more negative keeps more blocks.
        policy_weight: factor of the policy gradient, a mean over the batch. The joint phase of the released
            code sums it, so that phase wants the batch size here.
        entropy_weight: beta, factor of the entropy of the decisions; 0 in the joint phase.
        one_sided_entropy: the released code's -s' log s' without the term of skipping.
        free_units: how many of the last units the policy decides about, the curriculum; None is all.
    """

    policy_depth: int = 8
    policy_shortcut: Shortcut = "pool_end"
    shrink: int = 1
    alpha: float = 0.8
    penalty: float = -1.0
    policy_weight: float = 1.0
    entropy_weight: float = 0.0
    one_sided_entropy: bool = False
    free_units: float | None = None

    def __post_init__(self) -> None:
        if self.policy_depth != _FOR_PHOTOGRAPHS and (self.policy_depth < 8 or (self.policy_depth - 2) % 6):
            raise RecipeError(
                f"policy_depth must be 6n + 2 for 32x32 images or {_FOR_PHOTOGRAPHS} for photographs, got "
                f"{self.policy_depth}; the paper uses 8 and 10"
            )
        if self.policy_depth == _FOR_PHOTOGRAPHS and self.policy_shortcut != "pool_end":
            raise RecipeError(
                f"policy_shortcut has no effect with policy_depth {_FOR_PHOTOGRAPHS}, which has projections, "
                f"got {self.policy_shortcut!r}; drop it"
            )
        if not 0.5 <= self.alpha <= 1:
            raise RecipeError(f"alpha must be in [0.5, 1], got {self.alpha}; the paper uses 0.8")
        if self.penalty > 0:
            raise RecipeError(f"penalty must be at most 0, got {self.penalty}; the paper uses -1 to -10")
        if self.policy_weight < 0 or self.entropy_weight < 0:
            raise RecipeError(
                f"policy_weight and entropy_weight must be at least 0, got {self.policy_weight} and "
                f"{self.entropy_weight}"
            )
        if self.one_sided_entropy and self.entropy_weight == 0:
            raise RecipeError("one_sided_entropy has no effect with entropy_weight 0; set entropy_weight")
        if self.free_units is not None and self.free_units < 1:
            raise RecipeError(f"free_units must be at least 1, got {self.free_units}; drop it for all")
        if self.shrink < 1:
            raise RecipeError(f"shrink must be at least 1, got {self.shrink}; 1 keeps the image's size")


def _router(backbone: Backbone, settings: BlockDropConfig) -> PolicyRouter:
    check_two_options(backbone, "blockdrop")
    return PolicyRouter(_policy(backbone, settings), shrink=settings.shrink)


def _policy(backbone: Backbone, settings: BlockDropConfig) -> Backbone:
    """Return the policy network, which starts as in the released code: convolutions by fan-out."""
    network: CifarResNet | ImageNetResNet
    depth, num_units, channels = settings.policy_depth, len(backbone.units), backbone.image_channels
    if depth == _FOR_PHOTOGRAPHS:
        network = ImageNetResNet(
            ImageNetResNetConfig(depth=depth, num_classes=num_units, in_channels=channels)
        )
    else:
        network = CifarResNet(
            CifarResNetConfig(
                depth=depth,
                num_classes=num_units,
                in_channels=channels,
                shortcut=settings.policy_shortcut,
            )
        )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.fc.reset_parameters()
    return network


def _curriculum(router: Router, settings: BlockDropConfig) -> Router:
    if settings.free_units is None or not isinstance(router, PolicyRouter):
        return router
    return LastUnitsRouter(router, num_free=int(settings.free_units))


def _sampler(settings: BlockDropConfig, noise: Noise) -> Sampler:
    return Categorical(noise=noise, log_probs=partial(bounded_log_probs, alpha=settings.alpha))


def _losses(
    output: RoutedOutput, batch: Batch, cost: CostModel, settings: BlockDropConfig
) -> dict[str, Tensor]:
    decisions = output.decisions
    assert batch.greedy is not None
    assert decisions.logits is not None
    units = decisions.weights.shape[1]
    free = slice(max(0, units - int(settings.free_units or units)), None)
    log_probs = bounded_log_probs(decisions.logits[:, free], settings.alpha)
    advantage = self_critical_advantage(output, batch.greedy, batch.labels, penalty=settings.penalty)
    policy = reinforce_loss(log_probs, decisions.weights[:, free], advantage.unsqueeze(1))
    terms = {"policy": settings.policy_weight * policy}
    if settings.entropy_weight > 0:
        execute = log_probs[..., 1]
        spread = -execute.exp() * execute if settings.one_sided_entropy else entropy(log_probs)
        terms["entropy"] = -settings.entropy_weight * spread.sum(dim=1).mean()
    return terms


BLOCKDROP = Method(
    name="blockdrop",
    summary="BlockDrop (CVPR 2018): a policy network ahead of a pretrained ResNet, policy gradients",
    settings=BlockDropConfig,
    router=_router,
    sampler=_sampler,
    losses=_losses,
    curriculum=_curriculum,
    wants_greedy=True,
)
