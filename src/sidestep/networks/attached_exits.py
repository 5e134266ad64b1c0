"""Early exits on a network that had none: static, routed, or wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.wrapping import wrap_network
from sidestep.errors import RecipeError
from sidestep.layers.exit_head import AttachedHead
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork


def attach_exits(
    network: nn.Module, at: Sequence[str], *, num_classes: int, width: int = 64
) -> RoutedNetwork:
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
    return RoutedNetwork(backbone, routed.router, exits=heads, units_before=places)


def _routed(network: nn.Module) -> RoutedNetwork:
    if type(network) is RoutedNetwork and not network.has_early_exits:
        return network
    if isinstance(network, DynamicNetwork):
        raise RecipeError(
            "exits can be attached to a network that skips units and has none yet, got "
            f"{type(network).__name__}; leave model.exits out"
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
