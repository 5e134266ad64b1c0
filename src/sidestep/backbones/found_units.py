"""Which modules of a network are residual blocks, seen while the network runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from sidestep.backbones.observed import Call, Observed, observe
from sidestep.errors import RecipeError
from sidestep.layers.first_convolution import first_in_channels
from sidestep.registry import did_you_mean

Layout = Literal["maps", "channels_last", "tokens"]

# The path of a block beside its branch that changes the shape, as timm and torchvision call it.
_SHORTCUTS = ("downsample", "shortcut", "proj")

# Tried in this order where neither the caller nor the network says a size. Small maps come last: on a single
# position blocks that shrink maps would seem to keep their shape.
_SIDES = (224, 256, 384, 160, 128, 96, 64, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundUnit:
    """A residual block.

    Attributes:
        name: of the module.
        given: shape of its input for one image.
        returned: shape of its output.
        layout: where both have their channels.
        shortcut: what the module on its shortcut is called, where that changes the shape.
        activation: name of the module behind the sum of a block that opens a stage, if there is one.
    """

    name: str
    given: torch.Size
    returned: torch.Size
    layout: Layout
    shortcut: str | None = None
    activation: str | None = None

    @property
    def given_channels(self) -> int:
        """Return the channels of the input."""
        return self.given[1 if self.layout == "maps" else -1]

    @property
    def channels(self) -> int:
        """Return the channels of the output."""
        return self.returned[1 if self.layout == "maps" else -1]


def watch(network: nn.Module, size: tuple[int, int] | None) -> tuple[Observed, tuple[int, int]]:
    """Return what can be seen while a network runs on one image, and the size of that.

    A copy is run, of shapes alone if that is possible.

    Args:
        network: left as it is.
        size: height and width of its images, tried before what the network says, and usual sizes.

    Raises:
        RecipeError: when it runs on images of none of these sizes, or returns no logits.
    """
    channels, sizes = first_in_channels(network), [*([size] if size else []), *_sizes(network)]
    real = {parameter.device.type for parameter in network.parameters()} != {"meta"}
    first: Exception | None = None
    # Shapes alone are quick; code that makes tensors of its own needs real ones.
    for device in ("meta", "cpu") if real else ("meta",):
        shadow = copy.deepcopy(network).to(device).float().eval().requires_grad_(False)
        for height, width in sizes:
            try:
                images = torch.zeros(1, channels, height, width, device=device)
                observed = observe(shadow, images)
            except Exception as error:  # whatever a network raises for a size that it does not take
                first = first or error
                continue
            _check_logits(network, observed.output)
            return observed, (height, width)
    reason = str(first).strip().partition("\n")[0].rstrip(".")
    raise RecipeError(
        f"model must map images to logits, got a {type(network).__name__} that does not run on one of "
        f"{channels} channels and {sizes[0][0]} x {sizes[0][1]} pixels, nor of other sizes ({reason}); set "
        "image_size, or wrap a network of images"
    ) from first


def _check_logits(network: nn.Module, output: object) -> None:
    if isinstance(output, Tensor) and output.dim() == 2:
        return
    found = f"a tensor of {output.dim()} dimensions" if isinstance(output, Tensor) else type(output).__name__
    raise RecipeError(
        f"model must return one (B, classes) tensor of logits, got a {type(network).__name__} that returns "
        f"{found}; wrap a classifier"
    )


def _sizes(network: nn.Module) -> list[tuple[int, int]]:
    built = getattr(getattr(network, "patch_embed", None), "img_size", None)
    known = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", ())
    found = [tuple(built)] if isinstance(built, tuple) and len(built) == 2 else []
    found += [tuple(known[-2:])] if len(known) == 3 else []
    return list(dict.fromkeys([*found, *((side, side) for side in _SIDES)]))


def find_units(observed: Observed) -> list[FoundUnit]:
    """Return the residual blocks of a network, the largest ones that are no row of smaller ones.

    A block maps one tensor to one of the same shape, x to x + f(x) up to a last activation, or has a module
    on its shortcut.
    """
    blocks = {call.name: unit for call in observed.calls if (unit := _unit_of(observed, call)) is not None}
    calls = {call.name: call for call in observed.calls if call.name in blocks}
    rows = {name for name in blocks if _is_row(observed, calls[name], calls)}
    inside = {name for name in blocks if any(name.startswith(f"{other}.") for other in blocks.keys() - rows)}
    return [unit for name, unit in blocks.items() if name not in rows | inside]


def _unit_of(observed: Observed, call: Call) -> FoundUnit | None:
    if not call.name or observed.counts[call.name] != 1 or next(call.module.parameters(), None) is None:
        return None
    return None if _obstacle(observed, call) else _described(observed, call)


def _obstacle(observed: Observed, call: Call) -> str:
    """Return the rule that a module breaks as a unit, and behind a bar how, or nothing."""
    given, returned = (" x ".join(map(str, shape[1:])) for shape in call.shapes)
    if call.given == call.returned:
        return "must compute something|which hands on what it is given"
    if any(len(shape) not in (3, 4) for shape in call.shapes):
        return f"must map feature maps or tokens|which maps {given} to {returned}"
    if observed.overwrites(call):
        return "must leave their input as it is|which writes over it (inplace=True at its start)"
    if call.keeps_shape:
        way = observed.way(call.given, call.returned)
        if way is None or not observed.sums(way):
            return "must be residual blocks, x + f(x)|whose output is no such sum"
    elif _shortcut(observed, call) is None:
        return (
            "must return the shape that they are given, or have their shortcut as a module "
            f"`{_SHORTCUTS[0]}`|which maps {given} to {returned}"
        )
    return ""


def _shortcut(observed: Observed, call: Call) -> Call | None:
    """Return the call of the shortcut of a block that changes the shape, if the output is a sum with it."""
    if _layout(observed, call) != "maps":
        return None
    for each in observed.inside(call):
        if each.name in [f"{call.name}.{name}" for name in _SHORTCUTS] and each.given == call.given:
            way = observed.way(each.returned, call.returned)
            if way is not None and observed.sums(way):
                return each
    return None


def _described(observed: Observed, call: Call) -> FoundUnit:
    found = FoundUnit(
        name=call.name, given=call.shapes[0], returned=call.shapes[1], layout=_layout(observed, call)
    )
    shortcut = None if call.keeps_shape else _shortcut(observed, call)
    if shortcut is None:
        return found
    last = [
        each.name
        for each in observed.inside(call)
        if each.returned == call.returned and next(each.module.parameters(), None) is None
    ]
    name = shortcut.name.rpartition(".")[2]
    return replace(found, shortcut=name, activation=last[0] if last else None)


def _layout(observed: Observed, call: Call) -> Layout:
    """Return where a block has its channels: the first layer that reads such features knows."""
    shape = call.shapes[0]
    if len(shape) == 3:
        return "tokens"
    for each in sorted(observed.inside(call), key=lambda each: each.moments[0]):
        module = each.module
        if each.shapes[0] != shape:
            continue
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            return "maps"
        if isinstance(module, nn.Linear):
            return "channels_last"
        if hasattr(module, "normalized_shape"):
            # Subclasses that normalise maps are called so, in timm and in torchvision.
            return "maps" if "2d" in type(module).__name__ else "channels_last"
    return "maps"


def _is_row(observed: Observed, call: Call, blocks: dict[str, Call]) -> bool:
    """Return whether a block is nothing but blocks inside of it, one behind the other.

    So is a stage that begins with a `downsample` in front of its blocks.
    """
    shortcut = None if call.keeps_shape else _shortcut(observed, call)
    place = call.given if shortcut is None else shortcut.returned
    inner = {each.given: each for each in reversed(observed.inside(call)) if each.name in blocks}
    way, at = observed.way(place, call.returned) or [], 0
    while place != call.returned:
        if place in inner and inner[place].returned in way:
            place = inner[place].returned
        elif (at := way.index(place) + 1) < len(way) and observed.is_view(way[at]):
            place = way[at]
        else:
            return False
    return True


def named_units(network: nn.Module, observed: Observed, names: Sequence[str]) -> list[FoundUnit]:
    """Return the units that a user has named.

    Raises:
        RecipeError: for a name of no module, and for a module that cannot be a unit.
    """
    known = {name for name, _ in network.named_modules() if name}
    if not names:
        _refuse(
            "must name one module or more", "got an empty list", "name residual blocks, or leave units out"
        )
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; modules are {_shown(known)}"
            raise RecipeError(f"units must name modules of the network, got {name!r}{hint}")
        if names.count(name) > 1:
            _refuse(
                "must name every module once", f"got {name!r} {names.count(name)} times", "drop the others"
            )
        if outer := [each for each in names if name.startswith(f"{each}.")]:
            _refuse("must not lie inside of each other", f"got {name!r} in {outer[0]!r}", "drop one of them")
    return [_named(observed, name) for name in names]


def _named(observed: Observed, name: str) -> FoundUnit:
    count = observed.counts.get(name, 0)
    if count != 1:
        raise RecipeError(
            f"units must be called once for every image, got {name!r}, which is called {count} times; "
            "name modules that are"
        )
    call = next((call for call in observed.calls if call.name == name), None)
    problem = "must map one tensor to one|which takes or returns something else"
    if call is None or (problem := _obstacle(observed, call)):
        rule, _, found = problem.partition("|")
        hint = ", ".join(unit.name for unit in find_units(observed)[:4])
        _refuse(rule, f"got {name!r}, {found}", f"residual blocks are {hint}" if hint else "name others")
    return _described(observed, call)


def _refuse(rule: str, found: str, way_out: str) -> NoReturn:
    raise RecipeError(f"units {rule}, {found}; {way_out}")


def _shown(names: Iterable[str]) -> str:
    outer = sorted(names, key=lambda name: (name.count("."), name))
    return ", ".join(outer[:8]) + (" and so on" if len(outer) > 8 else "")
