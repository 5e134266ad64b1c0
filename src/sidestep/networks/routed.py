"""A backbone with a router, and perhaps early exits: the network that skips units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import ExitStop, Stop, UnitStop
from sidestep.routing.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """What `wrap` was asked for, in plain values.

    Attributes:
        method: its name.
        units: what units are.
        settings: of the method.
    """

    method: str
    units: str | list[str]
    settings: dict[str, Any]


class RoutedNetwork(DynamicNetwork):
    """Asks a router in front of every unit, samples its logits, and runs the unit accordingly.

    Args:
        backbone: the static network.
        router: who decides; None executes every unit and makes the network static.
        exits: early exits, each maps features to (B, C); the backbone's head is one more, the last one.
        units_before: number of units in front of every early exit, rising.

    Attributes:
        wrapping: how `wrap` has made it, or None.
    """

    def __init__(
        self,
        backbone: Backbone,
        router: Router | None = None,
        *,
        exits: Sequence[nn.Module] = (),
        units_before: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.router = router
        self.exits = nn.ModuleList(exits)
        self._units_before = (*units_before, len(backbone.units))
        self.wrapping: Wrapping | None = None

    def stem(self, images: Tensor) -> Tensor:
        return self.backbone.stem(images)

    def stops(self) -> Iterator[Stop]:
        places = zip(self._units_before, (*self.exits, self.backbone.head), strict=True)
        exits = {place: ExitStop(number, exit) for number, (place, exit) in enumerate(places)}
        for index, unit in enumerate(self.backbone.units):
            if index in exits:
                yield exits[index]
            yield UnitStop(index, unit)
        yield exits[self._units_before[-1]]

    @property
    def units(self) -> Sequence[Unit]:
        return self.backbone.units

    @property
    def image_channels(self) -> int:
        return self.backbone.image_channels

    @property
    def num_options(self) -> int:
        return self.backbone.num_options

    @property
    def runs_units(self) -> bool:
        return self.router is None or self.chooses_options

    @property
    def units_before(self) -> Sequence[int]:
        return self._units_before

    @property
    def tokens(self) -> bool:
        return self.backbone.tokens

    @property
    def static(self) -> nn.Module:
        return self.backbone

    def parts(self) -> dict[str, nn.Module]:
        routers = {} if self.router is None else {"routers": self.router}
        exits = {"exits": self.exits} if len(self.exits) else {}
        return {"blocks": self.backbone, **routers, **exits}
