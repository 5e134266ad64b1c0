"""Early exits on a network that had none: static, routed, or wrapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.timm_units import wrap_network
from sidestep.errors import RecipeError
from sidestep.layers.exit_head import AttachedHead
from sidestep.layers.rows import take_rows
from sidestep.layers.unit import Execute
from sidestep.networks.exit_network import ExitNetwork, State, Steps
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter, Router
from sidestep.routing.samplers import Sampler
from sidestep.types import Decisions


class AttachedExits(ExitNetwork):
    """A routed or static network with exits between its units; its own head is the last exit.

    Args:
        network: whose backbone and router are taken over.
        units_before: number of units in front of every new exit, rising.
        heads: of the new exits, each maps features to (B, C).
    """

    def __init__(
        self, network: RoutedNetwork, units_before: Sequence[int], heads: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.router = network.router
        self.exits = nn.ModuleList(heads)
        self.num_exits = len(heads) + 1
        self._units_before = (*units_before, len(network.backbone.units))

    @property
    def units_before(self) -> Sequence[int]:
        return self._units_before

    @property
    def shape_of_choices(self) -> tuple[int, int]:
        return len(self.backbone.units), self.backbone.num_options

    @property
    def static(self) -> nn.Module:
        return self.backbone

    def parts(self) -> dict[str, nn.Module]:
        routers = {} if self.router is None else {"routers": self.router}
        return {"blocks": self.backbone, **routers, "exits": self.exits}

    def steps(self, *, sampler: Sampler, router: Router | None, execute: Execute) -> Steps:
        router = router if router is not None else self.router
        if router is None:
            rates = [1.0] * len(self.backbone.units)
            router = ConstantRouter.keep(rates, next(self.parameters()).device)
        return _RoutedSteps(network=self, sampler=sampler, router=router, execute=execute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoutedSteps:
    """The way through a routed network; its state: features, state of the router, all samples so far."""

    network: AttachedExits
    sampler: Sampler
    router: Router
    execute: Execute

    def begin(self, images: Tensor) -> State:
        x = self.network.backbone.stem(images)
        return {"x": x, "router": self.router.begin(images), "logits": (), "weights": (), "relaxed": ()}

    def advance(self, index: int, state: State) -> State:
        units = self.network.backbone.units
        x, memory = state["x"], state["router"]
        logits, weights, relaxed = [], [], []
        for place in range(len(state["weights"]), self.network.units_before[index]):
            scores, memory = self.router(place, x, memory)
            sample = self.sampler(scores)
            x = self.execute(units[place], x, sample.weights)
            logits.append(scores)
            weights.append(sample.weights)
            relaxed.append(sample.relaxed)
        return {
            "x": x,
            "router": memory,
            "logits": (*state["logits"], *logits),
            "weights": (*state["weights"], *weights),
            "relaxed": (*state["relaxed"], *relaxed),
        }

    def classify(self, index: int, state: State) -> Tensor:
        network, x = self.network, state["x"]
        logits: Tensor = network.exits[index](x) if index < len(network.exits) else network.backbone.head(x)
        return logits

    def take(self, state: State, rows: Tensor) -> State:
        rest = {name: value for name, value in state.items() if name != "router"}
        return {**take_rows(rest, rows), "router": self.router.take(state["router"], rows)}

    def decisions(self, state: State) -> Decisions:
        stacked = {name: torch.stack(state[name], dim=1) for name in ("weights", "logits", "relaxed")}
        return Decisions(**stacked)


def attach_exits(
    network: nn.Module, at: Sequence[str], *, num_classes: int, width: int = 64
) -> AttachedExits:
    """Return the network with an early exit behind each of the named modules, ready to be trained.

    Args:
        network: a `RoutedNetwork`, a `Backbone`, or a network of timm that `wrap` understands; its modules
            are used, not copied.
        at: names of units, or of modules around several ("layer2"), behind whose last unit the exit then is;
            in order of execution.
        num_classes: classes of the heads.
        width: channels of the heads' convolution; networks of tokens have none.

    Raises:
        RecipeError: for a network that cannot have exits, or a name that is unknown, out of order, or that of
            the network's end.
    """
    routed = _routed(network)
    backbone = routed.backbone
    places = [_place(backbone, name) for name in at]
    if not places or sorted(set(places)) != places:
        raise RecipeError(
            "at must name one module or more in order of execution, each with units of its own, got "
            f"{list(at)}; for example layer1, layer2"
        )
    if places[-1] == len(backbone.units):
        raise RecipeError(
            f"at must not name the network's end, which has its own head, got {at[-1]!r}; leave it out"
        )
    heads = [
        AttachedHead(backbone.units[place].in_channels, width, num_classes, tokens=backbone.tokens)
        for place in places
    ]
    return AttachedExits(routed, places, heads)


def _routed(network: nn.Module) -> RoutedNetwork:
    if type(network) is RoutedNetwork:
        return network
    if isinstance(network, DynamicNetwork):
        raise RecipeError(
            f"exits can be attached to a network that skips units, got {type(network).__name__}; "
            "leave model.exits out"
        )
    return RoutedNetwork(network if isinstance(network, Backbone) else wrap_network(network))


def _place(backbone: Backbone, name: str) -> int:
    """Return the number of units up to the end of the named module.

    Raises:
        RecipeError: for a name without units.
    """
    origins = [unit.origin for unit in backbone.units]

    def last_unit(module: nn.Module) -> int:
        inside = set(module.modules())
        return max((place for place, origin in enumerate(origins, start=1) if origin in inside), default=0)

    named = dict(backbone.origin.named_modules())
    place = last_unit(named[name]) if name in named else 0
    if not place:
        known = [child for child, module in backbone.origin.named_children() if last_unit(module)]
        raise RecipeError(
            f"at must name modules with units inside, got {name!r}; this network has them in "
            f"{', '.join(known)}"
        )
    return place
