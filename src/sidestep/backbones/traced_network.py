"""Any network with residual blocks seen as stem, units and head, cut out of its own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

from torch import Tensor, nn

from sidestep.backbones.found_units import FoundUnit, Layout, find_units, named_units, watch
from sidestep.backbones.pieces import Piece, cut
from sidestep.backbones.timm_units import BlockUnit, OpenerUnit, WrappedNetwork
from sidestep.backbones.unit_trials import try_units
from sidestep.errors import RecipeError
from sidestep.layers.first_convolution import first_in_channels
from sidestep.layers.unit import Unit


class _Between:
    """What is computed between two units, on maps (B, C, H, W) or tokens, whatever the network's code takes.

    Args:
        piece: the network's own code.
        before: layout of what it takes.
        after: layout of what it returns.
    """

    def __init__(self, piece: Piece, before: Layout, after: Layout) -> None:
        self.piece = piece
        self.before, self.after = before, after

    def __call__(self, x: Tensor) -> Tensor:
        return _shown(self.piece(_own(x, self.before)), self.after)


class ChannelsLastUnit(BlockUnit):
    """A block of maps (B, H, W, C), as in Swin; outside of it they are (B, C, H, W) without a copy."""

    def _execute(self, x: Tensor) -> Tensor:
        return _shown(self.block(_own(x, "channels_last")), "channels_last")


class TracedNetwork(WrappedNetwork):
    """A network whose residual blocks were found while it ran, or named by a user.

    Everything around them, blocks without a residual connection too, is computed by the network's own code:
    between two units it is a part of both options of the unit behind it.

    Args:
        network: of any class.
        found: its units in order of execution.
        pieces: what is computed around them, one more.
    """

    def __init__(self, network: nn.Module, found: Sequence[FoundUnit], pieces: Sequence[Piece]) -> None:
        super().__init__(network, _units(network, found, pieces))
        self._stem, self._head = pieces[0], pieces[-1]
        self._first, self._last = found[0].layout, found[-1].layout
        self.tokens = any(unit.layout == "tokens" for unit in found)

    @property
    def head_names(self) -> set[str]:
        if names := super().head_names:
            return names
        layers = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        return {
            key for key in self.network.state_dict() for name in layers[-1:] if key.startswith(f"{name}.")
        }

    def stem(self, images: Tensor) -> Tensor:
        return _shown(self._stem(images), self._first)

    def head(self, features: Tensor) -> Tensor:
        return self._head(_own(features, self._last))


def trace_network(
    network: nn.Module, names: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> TracedNetwork:
    """Return a network as a backbone whose units are its residual blocks.

    Args:
        network: whose modules are used, not copied.
        names: of the modules that are units; None finds them.
        size: height and width of its images; None tries what the network says, and usual sizes.

    Raises:
        RecipeError: for a network without residual blocks, for names of what is none, or where the network's
            code around the units cannot be traced.
    """
    observed, size = watch(network, size)
    found = find_units(observed) if names is None else named_units(network, observed, names)
    units, pieces = _cut(network, found) if names is None else _cut_as_named(network, names)
    by_name = {unit.name: unit for unit in found}
    ordered = [by_name[name] for name in units]
    if not ordered:
        _refuse(network)
    # What timm and torchvision have is known; the tests try a network of every family.
    if names is not None or not type(network).__module__.startswith(("timm.", "torchvision.")):
        try_units(
            network, units, size, first_in_channels(network),
            lambda copied: TracedNetwork(copied, ordered, cut(copied, units)[1]),
        )  # fmt: skip
    return TracedNetwork(network, ordered, pieces)


def _cut(network: nn.Module, found: Sequence[FoundUnit]) -> tuple[list[str], list[Piece]]:
    """Return those of the units that can be cut out, and the pieces around them.

    Where code around the innermost ones cannot be traced, they are left inside of what surrounds them.
    """
    names = [unit.name for unit in found]
    while names:
        try:
            units, _ = cut(network, names)
            return cut(network, units) if units else ([], [])
        except RecipeError:
            innermost = max(name.count(".") for name in names)
            if innermost == min(name.count(".") for name in names):
                raise
            names = [name for name in names if name.count(".") < innermost]
    return [], []


def _cut_as_named(network: nn.Module, names: Sequence[str]) -> tuple[list[str], list[Piece]]:
    units, pieces = cut(network, names)
    if left := [name for name in names if name not in units]:
        raise RecipeError(
            f"units must be all that leads from what is before to what is behind, got {left[0]!r}, which "
            "something passes by (a shortcut around it, a list of features); name the module around it"
        )
    return units, pieces


def _refuse(network: nn.Module) -> NoReturn:
    kind, children = type(network), ", ".join(name for name, _ in network.named_children())
    found = f"children {children}" if children else "no children"
    raise RecipeError(
        "model must have residual blocks, modules that map one tensor x to x + f(x), as ResNets, ConvNeXts, "
        "EfficientNets, MobileNets, RegNets, Swins and ViTs of timm and torchvision have them, got "
        f"{kind.__module__}.{kind.__qualname__} with {found}; "
        "choose one of those"
    )


def _units(network: nn.Module, found: Sequence[FoundUnit], pieces: Sequence[Piece]) -> Iterator[Unit]:
    stage, before = 0, found[0]
    for index, (unit, piece) in enumerate(zip(found, pieces, strict=False)):
        if index and unit.returned != before.returned:
            stage += 1
        entry = None
        if index and not (piece.does_nothing and unit.layout == before.layout):
            entry = _Between(piece, before.layout, unit.layout)
        block, channels = network.get_submodule(unit.name), before.channels if index else unit.given_channels
        if unit.shortcut is not None:
            yield OpenerUnit(
                block,
                in_channels=channels,
                stage=stage,
                activation=None if unit.activation is None else network.get_submodule(unit.activation),
                entry=entry,
                shortcut=unit.shortcut,
            )
        else:
            kind = ChannelsLastUnit if unit.layout == "channels_last" else BlockUnit
            yield kind(block, in_channels=channels, stage=stage, entry=entry)
        before = unit


def _own(x: Tensor, layout: Layout) -> Tensor:
    """Return features as the network's code takes them."""
    return x.permute(0, 2, 3, 1) if layout == "channels_last" else x


def _shown(x: Tensor, layout: Layout) -> Tensor:
    """Return features as routers and heads take them: maps with channels in front, or tokens."""
    return x.permute(0, 3, 1, 2) if layout == "channels_last" else x
