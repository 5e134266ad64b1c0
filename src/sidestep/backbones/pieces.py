"""What a network computes in front of its units, between them and behind them, cut out of its own code."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from sidestep.errors import RecipeError


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece keeps a value: 0 is what it is given, n the result of step n."""

    index: int


@dataclass(frozen=True, slots=True)
class _Step:
    """A call that a network's code makes.

    Attributes:
        kind: as fx names it: call_module, call_function, call_method or get_attr.
        target: the function, or the name of the module, method or attribute.
        args: with a `_Place` wherever there is a value.
        kwargs: the same.
    """

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, network: nn.Module, values: Sequence[Any]) -> Any:
        args, kwargs = _filled((self.args, self.kwargs), values)
        if self.kind == "call_module":
            return network.get_submodule(self.target)(*args, **kwargs)
        if self.kind == "call_function":
            return self.target(*args, **kwargs)
        if self.kind == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        owner, _, name = self.target.rpartition(".")
        return getattr(network.get_submodule(owner), name)


class Piece:
    """A part of a network's forward pass that takes one tensor and returns one.

    Modules are looked up by name whenever they run, so that a copy of the network runs its own ones, and what
    takes the place of a module is run instead of it.

    Args:
        network: whose code it is.
        training: its steps in training mode, with where the result is.
        evaluation: the same in evaluation mode, in which code may take other ways.
    """

    def __init__(
        self,
        network: nn.Module,
        training: tuple[Sequence[_Step], Any],
        evaluation: tuple[Sequence[_Step], Any],
    ) -> None:
        self.network = network
        self.training, self.evaluation = training, evaluation

    @property
    def does_nothing(self) -> bool:
        """Return whether the result is what it is given, in both modes."""
        return self.training == self.evaluation == ((), _Place(0))

    def __call__(self, x: Tensor) -> Tensor:
        steps, result = self.training if self.network.training else self.evaluation
        values: list[Any] = [x]
        for step in steps:
            values.append(step.run(self.network, values))
        out: Tensor = _filled(result, values)
        return out


def _filled(nest: Any, values: Sequence[Any]) -> Any:
    return map_aggregate(nest, lambda leaf: values[leaf.index] if isinstance(leaf, _Place) else leaf)


def cut(network: nn.Module, names: Sequence[str]) -> tuple[list[str], list[Piece]]:
    """Return those of the named modules between which one tensor passes alone, and the pieces around them.

    There is one piece in front of every unit, and one behind the last. A module is no unit where something
    that was computed before is read after it too, such as a shortcut around it: skipping it would have to
    know about that.

    Args:
        network: left as it is; its code is traced, nothing is run.
        names: of modules that are called once each, in any order.

    Returns:
        The units in order of execution, and one piece more.

    Raises:
        RecipeError: when the code around the modules cannot be traced.
    """
    graphs = {training: _traced(network, set(names), training) for training in (True, False)}
    found = [_units_of(graph, set(names)) for graph in graphs.values()]
    units = [name for name in found[1] if name in found[0]]
    pieces = {training: _pieces_of(graph, units) for training, graph in graphs.items()}
    return units, [Piece(network, *both) for both in zip(pieces[True], pieces[False], strict=True)]


class _Tracer(fx.Tracer):
    """Looks into the modules around units alone; all others are calls."""

    def __init__(self, around: set[str]) -> None:
        super().__init__()
        self.around = around

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.around


class _Whole(nn.Module):
    """A network with images as its one argument; all others are at their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Any) -> Any:
        return self.network(images)


_PREFIX = "network."
# Calls of which nothing is left where their result is not read.
_SHAPES = (getattr, operator.getitem, "size", "dim")


def _traced(network: nn.Module, names: set[str], training: bool) -> fx.Graph:
    whole = _Whole(network)
    around = {
        f"{_PREFIX}{name}"[: len(_PREFIX) + cut_at]
        for name in names
        for cut_at, letter in enumerate(name)
        if letter == "."
    } | {_PREFIX[:-1]}
    with _in_mode([whole.get_submodule(name) for name in around], training):
        try:
            graph = _Tracer(around).trace(whole)
        except Exception as error:  # code that looks at values raises whatever it likes
            first = str(error).strip().partition("\n")[0].rstrip(".")
            raise RecipeError(
                f"the code of {type(network).__name__} around its units must be the same for all images, and "
                f"could not be traced ({type(error).__name__}: {first}); name modules further inside as "
                "units, or write a Backbone (docs/extending.md)"
            ) from error
    for node in reversed(graph.nodes):
        if node.target in _SHAPES and not node.users:
            graph.erase_node(node)
    return graph


@contextmanager
def _in_mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """Let modules be in a mode, without their children."""
    before = [module.training for module in modules]
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


def _units_of(graph: fx.Graph, names: set[str]) -> list[str]:
    """Return the named modules after which nothing is read that was computed before them, in order."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    last_read = {node: max((order[user] for user in node.users), default=0) for node in graph.nodes}
    units, furthest, calls = [], 0, [_unit_name(node, names) for node in graph.nodes]
    for node, name in zip(graph.nodes, calls, strict=True):
        alone = len(node.args) == 1 and not node.kwargs and calls.count(name) == 1
        if name is not None and alone and furthest <= order[node]:
            units.append(name)
        furthest = max(furthest, last_read[node])
    return units


def _unit_name(node: fx.Node, names: set[str]) -> str | None:
    if node.op != "call_module":
        return None
    name = str(node.target).removeprefix(_PREFIX)
    return name if name in names else None


def _pieces_of(graph: fx.Graph, units: Sequence[str]) -> list[tuple[tuple[_Step, ...], Any]]:
    """Return the steps of every piece, and where its result is."""
    pieces: list[tuple[tuple[_Step, ...], Any]] = []
    steps: list[_Step] = []
    places: dict[fx.Node, _Place] = {}

    def placed(nest: Any) -> Any:
        return map_aggregate(
            nest, lambda leaf: cast(Any, places[leaf] if isinstance(leaf, fx.Node) else leaf)
        )

    for node in graph.nodes:
        name = _unit_name(node, set(units))
        if node.op == "placeholder":
            places[node] = _Place(0)
        elif name is not None or node.op == "output":
            pieces.append((tuple(steps), placed(node.args[0])))
            steps, places = [], {node: _Place(0)}
        else:
            target = node.target
            if node.op in ("call_module", "get_attr"):
                target = str(target).removeprefix(_PREFIX)
            steps.append(_Step(node.op, target, placed(tuple(node.args)), placed(dict(node.kwargs))))
            places[node] = _Place(len(steps))
    return pieces
