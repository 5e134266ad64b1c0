"""A network run as if its weights and maps were bytes: rounded where a plan on bytes rounds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from sidestep.execution.execution import Execution
from sidestep.layers.fake_bytes import FakeBytes, rounded_weight
from sidestep.layers.unit import Unit

Kind = Literal["input", "output", "before unit", "after unit"]


@dataclass(frozen=True, slots=True)
class Point:
    """A place at which a network's maps are rounded.

    Attributes:
        kind: the input or the output of a module, or what is in front of a unit or behind it.
        name: of the module, or the unit's index.
    """

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Numbers that bytes stand for, `scale * (byte - zero)`, and where.

    Attributes:
        scale: above 0.
        zero: the byte that stands for 0.
        points: all places that share it.
    """

    scale: float
    zero: int
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteLayout:
    """Which weights and maps of a network are bytes.

    Attributes:
        weights: names of the convolutions and linear layers whose weights are.
        ranges: of the maps.
        stored: names of layers that compute with real numbers, whose weights are int8 in a plan's file.
    """

    weights: Sequence[str]
    ranges: Sequence[ByteRange]
    stored: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return asdict(self)

    def without(self, part: str) -> ByteLayout:
        """Return the same without modules whose names begin in some way."""
        ranges = [
            replace(each, points=kept)
            for each in self.ranges
            if (kept := [point for point in each.points if not point.name.startswith(part)])
        ]
        weights, stored = (
            [name for name in names if not name.startswith(part)] for names in (self.weights, self.stored)
        )
        return ByteLayout(weights=weights, ranges=ranges, stored=stored)


def byte_layout_from(values: Mapping[str, Any]) -> ByteLayout:
    """Return what `as_dict` has made plain values of.

    Raises:
        KeyError, TypeError, ValueError: for other values.
    """
    ranges = [
        ByteRange(
            scale=float(each["scale"]),
            zero=int(each["zero"]),
            points=[Point(kind=point["kind"], name=str(point["name"])) for point in each["points"]],
        )
        for each in values["ranges"]
    ]
    if any(not each.scale > 0 or not 0 <= each.zero <= 255 for each in ranges):
        raise ValueError("scales must be above 0 and zero points bytes")
    # Runs of before plans stored them so have none.
    weights, stored = ([str(name) for name in each] for each in (values["weights"], values.get("stored", ())))
    return ByteLayout(weights=weights, ranges=ranges, stored=stored)


class _HasUnits(Protocol):
    @property
    def units(self) -> Sequence[Unit]: ...


class OnBytes(nn.Module):
    """Runs networks of one shape as if they were on bytes; its parameters are the scales of their maps.

    The networks are not part of it, and nothing of them changes.

    Args:
        layout: where bytes are, and the ranges at the start.
    """

    def __init__(self, layout: ByteLayout) -> None:
        super().__init__()
        self._layout = layout
        self.ranges = nn.ModuleList(FakeBytes(each.scale, each.zero) for each in layout.ranges)

    @property
    def layout(self) -> ByteLayout:
        """Return where bytes are, with the ranges of now."""
        learnt = [each.scale.detach() for each in self._ranges()]
        # One trip to a GPU for all.
        scales = torch.stack(learnt).tolist() if learnt else []
        ranges = [replace(each, scale=scale) for each, scale in zip(self._layout.ranges, scales, strict=True)]
        return replace(self._layout, ranges=ranges)

    def run(self, network: nn.Module, images: Tensor, *, execution: Execution, **how: Any) -> Any:
        """Return what a network says about images on bytes.

        Args:
            network: with the modules and units that the layout names.
            images: (B, C, H, W).
            execution: how it is run.
            how: further arguments of the call.
        """
        names = (*self._layout.weights, *self._layout.stored)
        weights = {f"{name}.weight": network.get_submodule(name).weight for name in names}
        rounded = {name: rounded_weight(weight) for name, weight in weights.items()}  # type: ignore[arg-type]
        with self._hooked(network):
            how["execution"] = self._around(network, execution)
            return functional_call(network, rounded, (images,), how, tie_weights=True)

    def _ranges(self) -> Iterator[FakeBytes]:
        return (each for each in self.ranges if isinstance(each, FakeBytes))

    def _at(self, kind: Kind) -> dict[str, FakeBytes]:
        pairs = zip(self._layout.ranges, self._ranges(), strict=True)
        return {p.name: fake for each, fake in pairs for p in each.points if p.kind == kind}

    @contextmanager
    def _hooked(self, network: nn.Module) -> Iterator[None]:
        """Round inputs and outputs of modules while it is open."""
        handles: list[RemovableHandle] = []
        try:
            for name, fake in self._at("input").items():
                handles.append(network.get_submodule(name).register_forward_pre_hook(_first_by(fake)))
            for name, fake in self._at("output").items():
                handles.append(network.get_submodule(name).register_forward_hook(_result_by(fake)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _around(self, network: Any, execution: Execution) -> Execution:
        """Return an execution that rounds what is in front of units and behind them."""
        units: Sequence[Unit] = network.units
        before, after = (self._at(kind) for kind in ("before unit", "after unit"))
        places = {id(unit): str(index) for index, unit in enumerate(units)}

        def rounded(known: Mapping[str, FakeBytes], unit: Unit, x: Tensor) -> Tensor:
            fake = known.get(places[id(unit)])
            return x if fake is None else fake(x)

        def run(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
            return rounded(after, unit, execution.run(unit, rounded(before, unit, x), weights))

        def execute(unit: Unit, x: Tensor) -> Tensor:
            return rounded(after, unit, execution.execute(unit, rounded(before, unit, x)))

        return replace(execution, run=run, execute=execute)


def _first_by(fake: FakeBytes) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (fake(inputs[0]), *inputs[1:])


def _result_by(fake: FakeBytes) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, inputs, output: fake(output)


class SimulatedBytes(nn.Module):
    """A network that answers as if it were on bytes, for whoever evaluates it.

    Args:
        network: that is run.
        on_bytes: how.
    """

    def __init__(self, network: nn.Module, on_bytes: OnBytes) -> None:
        super().__init__()
        self.network = network
        self.on_bytes = on_bytes
        self.training = network.training

    def forward(self, images: Tensor, *, execution: Execution, **how: Any) -> Any:
        return self.on_bytes.run(self.network, images, execution=execution, **how)
