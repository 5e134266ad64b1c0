"""Networks that are trained as if they were on bytes: where they are rounded, and plans with their ranges."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidestep.execution.on_bytes import ByteLayout, ByteRange, Point
from sidestep.execution.prepare import norms_behind, prepare
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.byte_maps import Grid
from sidestep.plan.format import Op, Plan, inputs_of, lists_of_ops
from sidestep.plan.from_network import PlanCard, UnitMaps, export_with_maps
from sidestep.quantisation.byte_plan import are_worth_bytes, made_on_bytes, spread_out
from sidestep.quantisation.plan_parts import PARTS
from sidestep.quantisation.ranges import groups_of, maps_read
from sidestep.quantisation.sensitivity import Quantised, Search, chosen
from sidestep.routing.exit_rule import ExitRule

# Behind these ends a map of a convolution is what its BatchNorm makes, cut off where bytes are cut off too.
_CUT_OFF = (None, "relu6")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where the values of a plan are in the network that it was made of.

    Attributes:
        modules: names of convolutions and linear layers that a plan runs once, by their weights' in the plan.
        maps: of the plan, by their points in the network.
        vectors: outputs of linear layers, by the points at which these read.
    """

    modules: Mapping[str, str]
    maps: Mapping[Point, int]
    vectors: Mapping[Point, int]


def byte_layout(network: DynamicNetwork, card: PlanCard, batches: Sequence[Tensor]) -> ByteLayout:
    """Return where a network is to be on bytes while it is trained, and the ranges to begin with.

    They are those of `quantise`, of a plan in which all exits are computed, except that no layer stays real
    for its own error: the training is to mend that. What a plan computes several times with the same weights,
    such as routers that units share, is left out.

    Args:
        network: left untouched.
        card: what its plan says beside its steps.
        batches: (B, C, H, W) normalised images, on which ranges are found.

    Raises:
        ExportError: for a network that no plan can express.
    """
    rule = None
    if network.lets_leave:
        # A plan has exits only where images can leave; here none does.
        rule = ExitRule(thresholds=[2.0] * (network.num_exits - 1), criterion="confidence")
    plan, maps = export_with_maps(network, card, rule)
    search = Search(spread_out(plan), batches)
    layout = search.layout(chosen(search, rescue=False))
    places = _places(search.plan, network, maps, card.input_size)
    ops = {op["out"]: op for op in _ops(search.plan)}
    weights = [
        places.modules[ops[out]["weight"]]
        for out in search.layers
        if (out in layout.made or out in layout.in_grids) and ops[out]["weight"] in places.modules
    ]
    read = {value for op in ops.values() if op["out"] in layout.made for value in maps_read(op)}
    shared: dict[int, list[Point]] = defaultdict(list)
    for point, value in places.maps.items():
        # A real map is turned into bytes where it enters a unit that reads such, or a layer.
        enters = point.name in weights if point.kind == "input" else point.kind == "before unit"
        if value in layout.grids and (value in layout.made or (enters and value in read)):
            shared[search.ranges.groups[value]].append(point)
    grids = {search.ranges.groups[value]: grid for value, grid in layout.grids.items()}
    found = [(grids[group], points) for group, points in shared.items()]
    found += [(layout.in_grids[out], [at]) for at, out in places.vectors.items() if out in layout.in_grids]
    ranges = [ByteRange(scale=grid.scale, zero=grid.zero, points=points) for grid, points in found]
    real = [op for out, op in ops.items() if op["op"] in ("conv", "linear") and out not in layout.precise]
    stored = [
        name
        for op in real
        if (name := places.modules.get(op["weight"])) is not None
        and name not in weights
        and are_worth_bytes(search.plan.tensors[op["weight"]])
    ]
    return ByteLayout(weights=weights, ranges=ranges, stored=stored)


def quantise_trained(
    plan: Plan, network: DynamicNetwork, maps: UnitMaps, batches: Sequence[Tensor], layout: ByteLayout
) -> Quantised:
    """Return a plan on bytes where a network was trained to be, in the ranges that it has learnt.

    Args:
        plan: of the network, real.
        network: that was trained.
        maps: of the plan between its units.
        batches: (B, C, H, W) normalised images, for ranges of what was not trained on bytes and is on bytes
            nevertheless, and for the errors.
        layout: where, with the ranges at the end of the training.
    """
    real = spread_out(plan)
    height, width = plan.document["input"]["size"]
    places = _places(real, network, maps, (height, width))
    groups = groups_of(real, made_on_bytes(real.steps))
    by_group: dict[int, Grid] = {}
    in_grids: dict[int, Grid] = {}
    for each in layout.ranges:
        grid = Grid(each.scale, each.zero)
        for point in each.points:
            if (value := places.maps.get(point)) in groups:
                by_group.setdefault(groups[value], grid)
            if point in places.vectors:
                in_grids[places.vectors[point]] = grid
    grids = {value: by_group[group] for value, group in groups.items() if group in by_group}
    search = Search(real, batches, grids=grids, in_grids=in_grids)
    trained = set(layout.weights)
    left = [out for out, op in search.layers.items() if places.modules.get(op["weight"]) not in trained]
    kept = search.unseen | search.whole(left)
    for part in PARTS:
        outs = [out for out in search.layers if search.parts[out] == part]
        if outs and set(outs) <= kept:
            kept |= search.with_parts({part})
    return search.quantised(kept)


def _places(plan: Plan, network: DynamicNetwork, maps: UnitMaps, size: tuple[int, int]) -> _Places:
    """Return where the values of a plan, spread out, are in its network."""
    modules, ends = _modules(network, size)
    read = _read_elsewhere(plan)
    ops = [op for op in _ops(plan) if op["op"] in ("conv", "linear") and op["weight"] in modules]
    times = Counter(op["weight"] for op in ops)
    found: dict[Point, int] = {}
    vectors: dict[Point, int] = {}
    for op in ops:
        name = modules[op["weight"]]
        if times[op["weight"]] > 1:
            continue
        if op["op"] == "linear":
            vectors[Point("input", name)] = op["out"]
            continue
        found[Point("input", name)] = op["in"]
        if _is_plain(op) and op["out"] in read:
            found[Point("output", ends.get(name, name))] = op["out"]
    norms = {
        f"{name}.factor": name for name, each in network.named_modules() if isinstance(each, nn.BatchNorm2d)
    }
    for op in _ops(plan):
        if op["op"] == "affine" and op["weight"] in norms and _is_plain(op):
            found[Point("output", norms[op["weight"]])] = op["out"]
    found |= {Point("before unit", str(index)): value for index, value in maps.before.items()}
    found |= {Point("after unit", str(index)): value for index, value in maps.after.items()}
    once = {weight: name for weight, name in modules.items() if times[weight] <= 1}
    return _Places(modules=once, maps=found, vectors=vectors)


def _is_plain(op: Op) -> bool:
    """Return whether what a module makes is what its operation makes, but for what is cut off."""
    return op.get("residual") is None and op.get("activation") in _CUT_OFF and not op.get("slope")


def _modules(network: DynamicNetwork, size: tuple[int, int]) -> tuple[dict[str, str], dict[str, str]]:
    """Return layers by their weights' names in plans, and the BatchNorms behind layers that have one."""
    plain = copy.deepcopy(network).float().cpu().eval()
    example = torch.zeros(2, network.image_channels, *size)
    prepared = prepare(plain, example)
    ours, theirs = (
        [name for name, module in each.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        for each in (plain, prepared)
    )
    # Folding takes modules out of Sequentials, whose other modules get other names, and leaves the order.
    return {f"{b}.weight": a for a, b in zip(ours, theirs, strict=True)}, norms_behind(plain, example)


def _read_elsewhere(plan: Plan) -> set[int]:
    """Return the values that something reads that is no convolution's input: sums, means, choices."""
    found = {value for op in _ops(plan) for value in inputs_of(op) if op["op"] != "conv" or value != op["in"]}
    results = (option["results"] for step in plan.steps for option in step.get("options", ()))
    return found | {value for each in results for value in each}


def _ops(plan: Plan) -> Iterator[Op]:
    return (op for ops in lists_of_ops(plan.steps) for op in ops)
