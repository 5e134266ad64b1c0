"""Segments of networks that have no plan, those of tokens for one: PyTorch's own exporters write them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.cost.counting import counted_macs
from sidestep.errors import ExportError
from sidestep.evaluation.rivals import installed, onnx_of
from sidestep.execution.prepare import prepare
from sidestep.internals import tree_flatten, tree_unflatten
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import ExitStop, MemberStop, SegmentStop, UnitStop
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets.freezing import Freezing
from sidestep.targets.segment_route import branch_name
from sidestep.targets.segments import COUNTING
from sidestep.targets.torch_ops import doubt_of

# Of examples: with one image exporters would take their number for a constant.
_EXAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """All that an image takes from segment to segment: nests of tensors with a row per image."""

    images: Any
    x: Any = None
    state: Any = None
    said: Any = None
    labels: tuple[Tensor, ...] = ()

    def parts(self) -> tuple[Any, ...]:
        """Return the parts but for the images, which no segment changes."""
        return self.x, self.state, self.said, self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Where a segment ends: at which stop, with what, and what is decided there."""

    place: int
    carry: Carry
    kind: str
    index: int
    value: Tensor
    logits: Tensor | None = None
    fixed: dict[int, int] = field(default_factory=dict)


class Way(nn.Module):
    """A prepared network that is walked from one decision to the next.

    Args:
        network: in evaluation mode; it is copied.
        images: examples.
        rule: where images leave, or None.
        freezing: what is no longer decided.
    """

    def __init__(
        self, network: DynamicNetwork, images: Tensor, rule: ExitRule | None, freezing: Freezing
    ) -> None:
        super().__init__()
        self.network = prepare(copy.deepcopy(network).float().cpu(), images)
        self.stops = list(self.network.stops())
        self.rule, self.freezing = rule, freezing
        self.keeps_images = any(isinstance(stop, MemberStop) for stop in self.stops)

    def begin(self, images: Tensor) -> Carry:
        """Return what there is in front of the first stop."""
        router = self.network.router
        state = None if router is None else router.begin(images)
        return Carry(images=images, x=self.network.stem(images), state=state)

    def follow(self, place: int, option: int | None, carry: Carry) -> Reached:
        """Return where images come from a stop on, with an option of its unit if that was chosen."""
        fixed: dict[int, int] = {}
        if option is not None:
            stop: Any = self.stops[place]
            if option or not stop.unit.keeps_input:
                carry = replace(carry, x=stop.unit.run(option, carry.x))
            place += 1
        while True:
            stop = self.stops[place]
            if isinstance(stop, SegmentStop):
                carry = replace(carry, x=stop.compute(carry.x))
            elif isinstance(stop, MemberStop):
                carry = replace(carry, x=stop.start(carry.images))
            elif isinstance(stop, UnitStop):
                carry, chosen = self._unit(stop, carry, fixed)
                if chosen is not None:
                    return Reached(
                        place=place, carry=carry, kind="choose", index=stop.index, value=chosen, fixed=fixed
                    )
            else:
                assert isinstance(stop, ExitStop)
                carry, kind, value, logits = self._exit(stop, carry)
                if kind:
                    return Reached(
                        place=place + 1, carry=carry, kind=kind, index=stop.index, value=value, logits=logits,
                        fixed=fixed,
                    )  # fmt: skip
            place += 1

    def _unit(self, stop: UnitStop, carry: Carry, fixed: dict[int, int]) -> tuple[Carry, Tensor | None]:
        router, unit = self.network.router, stop.unit
        if router is None:
            return replace(carry, x=unit.execute(carry.x)), None
        logits, state = router(stop.index, carry.x, carry.state)
        carry, option = replace(carry, state=state), self.freezing.units.get(stop.index)
        if option is None:
            return carry, logits.argmax(dim=1)
        fixed[stop.index] = option
        if option or not unit.keeps_input:
            carry = replace(carry, x=unit.run(option, carry.x))
        return carry, None

    def _exit(self, stop: ExitStop, carry: Carry) -> tuple[Carry, str, Tensor, Tensor]:
        logits, said = self.network.answer(stop.index, stop.classify(carry.x), carry.said)
        carry = replace(carry, said=said)
        if self.network.router is not None:
            carry = replace(carry, state=self.network.router.see(logits, carry.state))
        if stop.index == self.network.num_exits - 1:
            return carry, "end", logits, logits
        assert self.rule is not None  # networks with early exits have one here
        if self.rule.criterion in COUNTING:
            label = logits.argmax(dim=1, keepdim=True).float()
            carry = replace(carry, labels=(*carry.labels, label))
        if stop.index in self.freezing.exits:
            return carry, "", logits, logits
        given = carry.labels if self.rule.criterion in COUNTING else (logits,)
        return carry, "exit", doubt_of(self.rule.criterion, self.temperature(stop.index), given), logits

    def temperature(self, index: int) -> float:
        """Return by what the logits of an exit are divided."""
        known = None if self.rule is None else self.rule.temperatures
        return 1.0 if known is None else float(known[index])


class TracedBranch(nn.Module):
    """A branch: tensors of a carry in, what it computes out.

    Args:
        way: of the network.
        place: stop where it begins; -1 in front of the first.
        option: of the unit there, or None.
        carry: an example of what is there.
    """

    def __init__(self, way: Way, place: int, option: int | None, carry: Carry) -> None:
        super().__init__()
        self.way, self.place, self.option = way, place, option
        self.leaves, self.spec = tree_flatten((carry.images, *carry.parts()))
        self.returned: list[int] | None = None

    def reach(self, tensors: Sequence[Tensor]) -> Reached:
        """Return where images come."""
        given = iter(tensors)
        leaves = [next(given) if is_row(leaf) else leaf for leaf in self.leaves]
        images, x, state, said, labels = tree_unflatten(leaves, self.spec)
        if self.place < 0:
            return self.way.follow(0, None, self.way.begin(images))
        carry = Carry(images=images, x=x, state=state, said=said, labels=tuple(labels))
        return self.way.follow(self.place, self.option, carry)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = outputs_of(self.reach(tensors))
        assert self.returned is not None  # which of them it computes
        # Copies, for exporters give what is one tensor one name.
        return tuple(found[index].clone() for index in self.returned)


def is_row(leaf: Any) -> bool:
    """Return whether a leaf has one row per image: routers keep weights in their states, too."""
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter | nn.Buffer)


def outputs_of(reached: Reached) -> list[Tensor]:
    """Return the tensors that are known behind a segment: those of the carry, then those of the decision."""
    leaves = [leaf for leaf in tree_flatten(reached.carry.parts())[0] if is_row(leaf)]
    return [*leaves, reached.value, *([reached.logits] if reached.kind == "exit" else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedNetwork:
    """Segments of a network, and what writes their graphs.

    Attributes:
        entries: of the manifest, in order.
        branches: modules with examples of their inputs and the names of inputs and outputs, by component.
    """

    entries: list[dict[str, Any]]
    branches: dict[str, tuple[TracedBranch, tuple[Tensor, ...], list[str], list[str]]]


def trace(
    network: DynamicNetwork, size: tuple[int, int], rule: ExitRule | None, freezing: Freezing
) -> TracedNetwork:
    """Return a network in segments.

    Args:
        network: in evaluation mode; it is left as it is.
        size: height and width of the images.
        rule: where images leave, or None.
        freezing: what is no longer decided.
    """
    images = torch.randn(_EXAMPLES, network.image_channels, *size, generator=torch.Generator().manual_seed(0))
    way = Way(network, images, rule, freezing).eval()
    traced = TracedNetwork(entries=[], branches={})
    place, options, carry, names = -1, (None,), Carry(images=images), ["images"]
    with torch.no_grad():
        while True:
            place, options, carry, names, ended = _segment(traced, way, place, options, carry, names)
            if ended:
                return traced


def _segment(
    traced: TracedNetwork, way: Way, place: int, options: Sequence[int | None], carry: Carry, names: list[str]
) -> Any:
    """Add a segment; return where the next one begins, and whether there is none."""
    number = len(traced.entries)
    branches: list[dict[str, Any]] = []
    made: list[str] = []
    given = [leaf for leaf in tree_flatten((carry.images, *carry.parts()))[0] if is_row(leaf)]
    reached: Any = None
    for option in options:
        branch = TracedBranch(way, place, option, carry)
        macs, reached = counted_macs(branch.reach, given)
        outputs = outputs_of(reached)
        made = [f"s{number}_{index}" for index in range(len(outputs))]
        known = {id(tensor): name for tensor, name in zip(given, names, strict=True)}
        passes = {
            name: known[id(each)] for name, each in zip(made, outputs, strict=True) if id(each) in known
        }
        branch.returned = [index for index, name in enumerate(made) if name not in passes]
        written = [made[index] for index in branch.returned]
        component = None
        if written:
            component = branch_name(number, option, len(options))
            traced.branches[component] = (branch, tuple(given), list(names), written)
        branches.append(
            {"option": option, "component": component, "inputs": names if written else [], "outputs": written,
             "passes": passes, "macs": macs / _EXAMPLES}
        )  # fmt: skip
    traced.entries.append({"branches": branches} | _ending(way, reached, made))
    kept = len(made) - 1 - (reached.kind == "exit")
    carry = reached.carry if way.keeps_images else replace(reached.carry, images=None)
    following: list[int | None] = [None]
    if reached.kind == "choose":
        following = list(range(way.stops[reached.place].unit.num_options))
    names = [*(["images"] if way.keeps_images else []), *made[:kept]]
    return reached.place, following, carry, names, reached.kind == "end"


def _ending(way: Way, reached: Reached, made: list[str]) -> dict[str, Any]:
    """Return what the manifest says of the end of a segment."""
    decision: dict[str, Any] = {"kind": reached.kind, "index": reached.index}
    decision["value"] = made[-2] if reached.kind == "exit" else made[-1]
    if reached.logits is not None:
        decision |= {"logits": made[-1], "temperature": way.temperature(reached.index)}
    return {
        "live": [*(["images"] if way.keeps_images else []), *made],
        "fixed_units": {str(unit): option for unit, option in reached.fixed.items()},
        "decision": decision,
    }


def traced_onnx(traced: TracedNetwork, component: str) -> bytes:
    """Return the ONNX file of a branch.

    Raises:
        ExportError: where PyTorch's exporter is not whole.
    """
    if not installed("onnxscript"):
        raise ExportError(
            "onnxscript must be installed for networks without a plan; `pip install 'sidestep[bench]'`"
        )
    branch, given, inputs, outputs = traced.branches[component]
    example = tuple(each.clone() for each in given)
    shapes = (tuple({0: "batch"} for _ in example),)
    with torch.no_grad():
        return onnx_of(branch.eval(), example, dynamic_shapes=shapes, names=(inputs, outputs))
