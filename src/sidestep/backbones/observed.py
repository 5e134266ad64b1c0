"""A forward pass watched from inside: which module got what, what it returned, and which sums made that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from sidestep.internals import UNSAFE_VIEW, TorchDispatchMode, tree_leaves

_ATEN = torch.ops.aten
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
# What gives the same numbers another shape or order; whether they come back in theirs is tried out.
_VIEWS = {
    *(_ATEN.view.default, UNSAFE_VIEW.default, _ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default),
    *(_ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default, _ATEN.unsqueeze.default),
    *(_ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.slice.Tensor),
}
# What blocks end with behind their sum.
_ACTIVATIONS = {
    *(_ATEN.relu.default, _ATEN.relu_.default, _ATEN.silu.default, _ATEN.silu_.default, _ATEN.gelu.default),
    *(_ATEN.hardswish.default, _ATEN.hardswish_.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default),
    *(_ATEN.leaky_relu.default, _ATEN.leaky_relu_.default, _ATEN.elu.default, _ATEN.elu_.default),
}


@dataclass(frozen=True, slots=True)
class Value:
    """The number of a tensor at a moment: writing over a tensor gives it another one."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module.

    Attributes:
        name: of the module in the network.
        module: which.
        given: its only argument, or None for a module with others.
        returned: its result, or None where that is no single tensor.
        shapes: of both.
        moments: when it began and ended, in operations.
    """

    name: str
    module: nn.Module
    given: Value
    returned: Value
    shapes: tuple[torch.Size, torch.Size]
    moments: tuple[int, int]

    @property
    def keeps_shape(self) -> bool:
        return self.shapes[0] == self.shapes[1]


class Observed(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Watches a network while this is open.

    Args:
        network: whose modules are watched, with hooks that are removed again.

    Attributes:
        calls: of modules that map one tensor to one, in the order in which they ended.
        output: of the network.
        counts: name of a module -> how often it was called, in whatever way.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.calls: list[Call] = []
        self.output: Any = None
        self.counts: dict[str, int] = {}
        self._made: list[tuple[Any, Any, Any]] = []
        self._written: list[tuple[int, torch.UntypedStorage]] = []
        self._numbers: dict[int, int] = {}
        self._tensors: list[Tensor] = []
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._begun: list[tuple[Value | None, int]] = []
        self._moment = 0

    def __enter__(self) -> Observed:
        self._handles = [
            handle
            for name, module in self.network.named_modules()
            for handle in (
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(partial(self._after, name)),
            )
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self._begun.append((self._value(args[0]) if alone else None, self._moment))

    def _after(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        given, began = self._begun.pop()
        self.counts[name] = self.counts.get(name, 0) + 1
        if given is not None and isinstance(output, Tensor):
            shapes = self._tensors[given.number].shape, output.shape
            self.calls.append(
                Call(
                    name=name, module=module, given=given, returned=self._value(output), shapes=shapes,
                    moments=(began, self._moment),
                )
            )  # fmt: skip

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = map_aggregate((args, kwargs), self._seen)
        out = func(*args, **kwargs)
        self._moment += 1
        if str(func).partition(".")[2].partition(".")[0].endswith("_"):
            self._written.append((self._moment, args[0].untyped_storage()))
            self._number(args[0], (func, *given))
        else:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._number(leaf, (func, *given))
        return out

    def _seen(self, leaf: Any) -> Any:
        return self._value(leaf) if isinstance(leaf, Tensor) else leaf

    def _value(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._numbers:
            self._number(tensor, (None, (), {}))
        return Value(self._numbers[id(tensor)])

    def _number(self, tensor: Tensor, made: tuple[Any, Any, Any]) -> None:
        # Tensors are kept, so that no other gets their id.
        self._numbers[id(tensor)] = len(self._tensors)
        self._tensors.append(tensor)
        self._made.append(made)

    def overwrites(self, call: Call) -> bool:
        """Return whether a module writes over what it is given."""
        storage = self._tensors[call.given.number].untyped_storage()
        began, ended = call.moments
        return any(began < moment <= ended and into is storage for moment, into in self._written)

    def inside(self, call: Call) -> list[Call]:
        """Return the calls of the modules inside of one, in the order in which they ended."""
        return [each for each in self.calls if each.name.startswith(f"{call.name}.")]

    def way(self, start: Value, end: Value) -> list[Value] | None:
        """Return the values on the way from one to another that only sums, views and last activations are on.

        None is returned where there is no such way, or none that keeps the numbers in their places. With a
        way, `end` is `start` plus something, perhaps with an activation behind the last sum.
        """
        for way in self._ways(end, start, activations=True):
            if self._keeps_places(way[::-1]):
                return way[::-1]
        return None

    def is_view(self, value: Value) -> bool:
        """Return whether a value is another one's numbers in another shape or order."""
        return self._made[value.number][0] in _VIEWS

    def sums(self, way: Sequence[Value]) -> int:
        """Return how many sums are on a way."""
        return sum(self._made[value.number][0] in _SUMS for value in way[1:])

    def _ways(self, end: Value, start: Value, *, activations: bool) -> list[list[Value]]:
        if end == start:
            return [[end]]
        func, args, kwargs = self._made[end.number]
        if func in _SUMS and kwargs.get("alpha", 1) == 1:
            parents, activations = [leaf for leaf in args[:2] if isinstance(leaf, Value)], False
            parents = parents if len(parents) == 2 else []
        elif func in _VIEWS or (activations and func in _ACTIVATIONS):
            parents = [args[0]]
        else:
            return []
        size = self._tensors[end.number].numel()
        same = [each for each in parents if self._tensors[each.number].numel() == size]
        return [[end, *way] for each in same for way in self._ways(each, start, activations=activations)]

    def _keeps_places(self, way: Sequence[Value]) -> bool:
        """Return whether views on a way bring all numbers back to where they were."""
        first, last = (self._tensors[value.number] for value in (way[0], way[-1]))
        places = torch.arange(first.numel())
        moved = places.view(first.shape)
        for value in way[1:]:
            func, args, kwargs = self._made[value.number]
            if func in _VIEWS:
                moved = func(moved, *args[1:], **{k: v for k, v in kwargs.items() if k != "device"})
        return moved.shape == last.shape and torch.equal(moved.reshape(-1), places)


def observe(network: nn.Module, images: Tensor) -> Observed:
    """Return what can be seen while a network runs.

    Args:
        network: in evaluation mode.
        images: (B, C, H, W) for it.
    """
    with torch.no_grad(), Observed(network) as observed:
        observed.output = network(images)
    return observed
