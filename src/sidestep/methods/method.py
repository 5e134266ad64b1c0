"""What a method is: data that says which router, sampler and losses a paper uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from sidestep.backbones.backbone import Backbone
from sidestep.errors import RecipeError
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import Router
from sidestep.routing.samplers import Noise, Sampler, argmax
from sidestep.types import Batch, CostModel, RoutedOutput

Settings = TypeVar("Settings")


def no_losses(output: RoutedOutput, batch: Batch, cost: CostModel, settings: Any) -> dict[str, Tensor]:
    """Return no terms: the task loss alone."""
    return {}


def noise_free(settings: Any, noise: Noise) -> Sampler:
    """Return the arg-max sampler, for methods that train on the path they evaluate."""
    return argmax


def no_statistics(settings: Any) -> None:
    """Return None: no loss looks at image statistics."""
    return


def no_budget(settings: Any) -> None:
    """Return None: no single setting says how much is executed."""
    return


def no_router(network: Any, settings: Any) -> None:
    """Return None: the network has no units to choose about, or brings its routers."""
    return


def as_built(network: DynamicNetwork, router: Router | None) -> DynamicNetwork:
    """Return a model that decides by itself as it was built."""
    return network


# Of methods that leave such blocks alone, for `Method.no_effect`.
OPENERS_RUN = {"skip": "which executes every block that changes the shape"}


def check_two_options(backbone: Backbone, method: str) -> None:
    """Refuse a backbone whose units have more options than a method's router decides between.

    Raises:
        RecipeError: naming the method.
    """
    if backbone.num_options != 2:
        raise RecipeError(
            f"method {method} runs a unit or not, so model.options must be 2, got {backbone.num_options}; "
            "drop it"
        )


def check_unused(settings: Any, beside: str, **defaults: Any) -> None:
    """Refuse settings that have no effect beside another one.

    Args:
        settings: a method's.
        beside: the other one.
        defaults: of the settings without effect.

    Raises:
        RecipeError: naming the first that is not its default.
    """
    for name, default in defaults.items():
        if (value := getattr(settings, name)) != default:
            raise RecipeError(f"{name} has no effect with {beside}, got {value!r}; drop it")


def check_network_target(target: float | None, weight: float) -> None:
    """Refuse a target of the whole network, beside those of units, that is none.

    Raises:
        RecipeError: naming the setting.
    """
    if target is not None and not 0 <= target <= 1:
        raise RecipeError(
            f"network_target must be in [0, 1], got {target}; 0.6 is a usual fraction of the MACs"
        )
    if weight < 0:
        raise RecipeError(f"network_weight must be at least 0, got {weight}; 100 holds a target")


def named_once(name: str, rates: list[float], num_units: int) -> list[float]:
    """Return rates that name every unit of a network once.

    Raises:
        RecipeError: naming the setting, when they do not.
    """
    if len(rates) != num_units:
        raise RecipeError(f"{name} must name every block once, got {len(rates)} rates for {num_units} blocks")
    return rates


def budget_name(settings: Any) -> str | None:
    """Return which setting says how much is executed: the network's target, or that of all units.

    A network for all budgets has none: it is trained alike whatever it is asked for afterwards.
    """
    if settings.budgets.low is not None:
        return None
    if settings.network_target is not None:
        return "network_target"
    return "target" if settings.schedule is None else None


def check_maps(backbone: Backbone, who: str) -> None:
    """Refuse a backbone of tokens where a router looks at the positions of maps.

    Raises:
        RecipeError: naming who looks.
    """
    if backbone.tokens:
        raise RecipeError(
            f"{who} looks at feature maps, so model.name must be a network of maps, got a "
            f"{type(backbone).__name__}, which has tokens; take a ResNet or a ConvNeXt"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Settings]):
    """One paper's choices.

    Attributes:
        name: as recipes say it.
        summary: one line for `sidestep methods`.
        settings: frozen dataclass of its options.
        router: (backbone, settings) -> router, or None for a static network.
        sampler: (settings, noise) -> sampler of training; evaluation takes the arg-max.
        noisy_sampler: the same for an evaluation whose decisions are drawn, where that of training is not
            what the released code draws from, or None. Without noise such an evaluation is refused.
        losses: (output, batch, cost, settings) -> weighted terms by name; added to the task loss.
        curriculum: (router, settings) -> who decides in training instead of the network's router, or None.
        wants_greedy: whether the losses compare with the most probable decisions (`Batch.greedy`).
        network: (backbone, router) -> the dynamic network.
        model: name of the model that the method is, for models that decide by themselves; `router` and
            `network` are given its network in place of a backbone. None takes any other.
        statistics: settings -> mapping of (B, 3, H, W) uint8 images to (B, S), or None.
        budget: settings -> name of the setting that says which share of the network is executed, or None.
        no_effect: keys of a recipe's `model:` that have no effect under the method, each with the reason.
    """

    name: str
    summary: str
    settings: type[Settings]
    router: Callable[[Backbone, Settings], Router | None]
    sampler: Callable[[Settings, Noise], Sampler] = noise_free
    noisy_sampler: Callable[[Settings, Noise], Sampler] | None = None
    losses: Callable[[RoutedOutput, Batch, CostModel, Settings], dict[str, Tensor]] = no_losses
    curriculum: Callable[[Router, Settings], Router] | None = None
    wants_greedy: bool = False
    # Of networks and routers a method takes those that itself and its model make.
    network: Callable[[Any, Any], DynamicNetwork] = RoutedNetwork
    model: str | None = None
    statistics: Callable[[Settings], Callable[[Tensor], Tensor] | None] = no_statistics
    budget: Callable[[Settings], str | None] = no_budget
    no_effect: Mapping[str, str] = field(default_factory=dict)
