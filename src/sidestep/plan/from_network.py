"""Any network that skips units or leaves at exits, exported to a plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from sidestep.backbones.backbone import Backbone
from sidestep.errors import ExportError
from sidestep.execution.prepare import prepare
from sidestep.layers.unit import Unit
from sidestep.networks.attached_exits import AttachedExits
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.format import VERSION, Plan, Step, lists_of_ops, weights_of
from sidestep.plan.simplify import simplify
from sidestep.plan.tracing import Held, call, held_image, traced_of
from sidestep.plan.writer import Writer
from sidestep.routing.chance import ChanceRouter
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.halting_units import HaltingRouter
from sidestep.types import CostModel

_REFUSED = {
    HaltingRouter: "act and sact weigh the outputs of several units, and plans run one option of each; "
    "evaluate them gathered",
    ChanceRouter: "random_drop decides by a hash of the pixels in float64, and plans have none; export "
    "fixed_path, which costs the same",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCard:
    """What a plan says beside its steps.

    Attributes:
        input_size: height and width of the images in training.
        mean: of every channel of pixels in [0, 1], subtracted.
        std: of every channel, divided by.
        class_names: in the order of the logits.
        cost: the network's price list.
        about: what people may want to know, by name.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    cost: CostModel
    about: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the same as the plan's document has it."""
        cost = self.cost
        prices: dict[str, Any] = {
            "fixed_macs": cost.fixed_macs,
            "option_macs": cost.option_macs.tolist(),
            "router_macs": cost.router_macs.tolist(),
            "full_macs": cost.full_macs,
        }
        if cost.exit_macs is not None and cost.exit_units is not None:
            prices |= {"exit_macs": cost.exit_macs.tolist(), "exit_units": cost.exit_units.tolist()}
        size, mean, std = list(self.input_size), list(self.mean), list(self.std)
        return {
            "input": {"channels": len(mean), "size": size, "mean": mean, "std": std},
            "classes": list(self.class_names),
            "about": self.about,
            "cost": prices,
        }


def export_plan(network: DynamicNetwork, card: PlanCard, rule: ExitRule | None = None) -> Plan:
    """Return the plan of a network: what its masked evaluation computes, one option of every unit at a time.

    BatchNorm is folded first. Every piece of the network is traced by itself to ATen operations, so that new
    routers and units need no code here as long as plans know their operations.

    Args:
        network: left untouched. A static one (without a router) becomes a plan without choices.
        card: what else the plan says.
        rule: where images leave a network with early exits; without one all leave at the last exit.

    Raises:
        ExportError: for a network that no plan can express, with the place, the reason and a way out.
    """
    if not isinstance(network, RoutedNetwork | ExitNetwork):
        raise ExportError(
            f"plans are made of networks with units or exits, got {type(network).__name__}; wrap its parts"
        )
    _check(network, rule)
    prepared = prepare(copy.deepcopy(network).float().cpu(), torch.zeros(2, 3, *card.input_size))
    writer, logits = Writer(prepared), -1
    for index, found in enumerate(_logits_of_exits(writer, prepared, held_image(card.input_size))):
        logits = writer.dense(traced_of(found))
        if rule is not None and index < len(rule.thresholds):
            writer.leave(_exit(rule, index, len(card.class_names), logits))
    steps, output = simplify(writer.steps, logits)
    used = {name for ops in lists_of_ops(steps) for op in ops for name in weights_of(op)}
    return Plan(
        document={"version": VERSION, **card.as_dict(), "steps": steps, "output": output},
        tensors={name: tensor for name, tensor in writer.weights.tensors.items() if name in used},
    )


def _check(network: RoutedNetwork | ExitNetwork, rule: ExitRule | None) -> None:
    for kind, reason in _REFUSED.items():
        if isinstance(network.router, kind):
            raise ExportError(reason)
    if isinstance(network, RoutedNetwork | AttachedExits) and network.backbone.tokens:
        raise ExportError("plans compute with maps, and this network with tokens; export a ResNet")
    num_exits = network.num_exits if isinstance(network, ExitNetwork) else 1
    if rule is not None and rule.num_exits != num_exits:
        raise ExportError(f"an exit rule must have the network's {num_exits} exits, got {rule.num_exits}")
    if rule is not None and rule.criterion == "patience":
        raise ExportError("plans know no patience at exits; calibrate with confidence, margin or entropy")


def _logits_of_exits(
    writer: Writer, network: RoutedNetwork | ExitNetwork, image: Held
) -> Iterator[Held | torch.Tensor]:
    """Yield the logits of every exit, the head last, once the steps that lead there are written."""
    if isinstance(network, RoutedNetwork):
        yield from _through_units(
            writer, network, {len(network.backbone.units): network.backbone.head}, image
        )
    elif isinstance(network, AttachedExits):
        heads = (*network.exits, network.backbone.head)
        yield from _through_units(writer, network, dict(zip(network.units_before, heads, strict=True)), image)
    else:
        state = call(writer, "the start", network.begin, image)
        for index in range(network.num_exits):
            state = call(writer, f"the way to exit {index}", network.advance, index, state)
            yield call(writer, f"exit {index}", network.classify, index, state)


def _through_units(
    writer: Writer, network: RoutedNetwork | AttachedExits, heads: dict[int, Any], image: Held
) -> Iterator[Held | torch.Tensor]:
    """Yield logits where there are heads, by the number of units in front of them."""
    backbone: Backbone = network.backbone
    router, state = network.router, None
    x = call(writer, "the stem", backbone.stem, image)
    if router is not None:
        state = call(writer, "the router's beginning", router.begin, image)
    for index, unit in enumerate(backbone.units):
        if index in heads:
            yield call(writer, f"the exit before unit {index}", heads[index], x)
        if router is None:
            x = call(writer, f"unit {index}", unit.execute, x)
            continue
        logits, state = call(writer, f"the router of unit {index}", router, index, x, state)
        step = writer.choose(traced_of(logits))
        x = _write_options(writer, step, unit, f"unit {index}", x)
    yield call(writer, "the head", heads[len(backbone.units)], x)


def _write_options(writer: Writer, step: Step, unit: Unit, place: str, x: Held) -> Held:
    """Write the options of a unit, and return its output."""
    out = x
    for option in range(unit.num_options):
        with writer.option(step) as results:
            if option or not unit.keeps_input:
                out = call(writer, f"{place}, option {option}", unit.run, option, x)
            results.append(writer.plain(traced_of(out)))
    return Held(writer.define(step), out.example)


def _exit(rule: ExitRule, index: int, num_classes: int, logits: int) -> Step:
    """Return the step at which images leave by a rule.

    Plans compare the entropy in nats, which falls with certainty, and the rule what it lacks of its largest
    value, as a share of that.
    """
    threshold = rule.thresholds[index]
    if rule.criterion == "entropy":
        threshold = (1 - threshold) * math.log(num_classes)
    temperature = 1.0 if rule.temperatures is None else rule.temperatures[index]
    # JSON has no infinity, which is the threshold where no one leaves.
    threshold = min(max(float(threshold), -3e38), 3e38)
    return {
        "exit": {
            "logits": logits,
            "criterion": rule.criterion,
            "threshold": threshold,
            "temperature": float(temperature),
        }
    }
