"""Any network that skips units or leaves at exits, exported to a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from sidestep.data.preparation import Preparation
from sidestep.errors import ExportError
from sidestep.execution.prepare import prepare
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import Visitor, exit_place, walk
from sidestep.plan.format import Plan, Step, lists_of_ops, preparation_entry, version_of, weights_of
from sidestep.plan.levels import Level, budget_entries, in_plan, on_top_of
from sidestep.plan.simplify import simplified
from sidestep.plan.tracing import SymbolicTensor, call, symbolic_image, traced_of
from sidestep.plan.writer import Map, Writer
from sidestep.routing.dial import DialLevel
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.router import Router, reads_exits
from sidestep.types import CostModel

# By which images can leave a plan.
CRITERIA_OF_PLANS = ("confidence", "margin", "entropy", "patience", "agreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCard:
    """What a plan says beside its steps.

    Attributes:
        input_size: height and width of the images in training.
        mean: of every channel of pixels in [0, 1], subtracted.
        std: of every channel, divided by.
        class_names: in the order of the logits.
        preparation: how pictures become images of that size; None leaves it unsaid.
        cost: the network's price list.
        about: what people may want to know, by name.
        levels: budgets for which images leave by other thresholds than the plan's; empty for one budget.
        dial: budgets for which gates have other biases than the network's; empty likewise.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    cost: CostModel
    preparation: Preparation | None = None
    about: dict[str, str] = field(default_factory=dict)
    levels: Sequence[Level] = ()
    dial: Sequence[DialLevel] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the same as the plan's document has it."""
        cost = self.cost
        prices: dict[str, Any] = {
            "fixed_macs": cost.fixed,
            "option_macs": cost.options.tolist(),
            "router_macs": cost.routers.tolist(),
            "full_macs": cost.full,
        }
        if cost.static is not None:
            prices["static_macs"] = cost.static
        if cost.exits is not None and cost.exit_units is not None:
            prices |= {"exit_macs": cost.exits.tolist(), "exit_units": cost.exit_units.tolist()}
        size, mean, std = list(self.input_size), list(self.mean), list(self.std)
        images: dict[str, Any] = {"channels": len(mean), "size": size, "mean": mean, "std": std}
        if self.preparation is not None:
            images["preparation"] = preparation_entry(self.preparation)
        return {
            "input": images,
            "classes": list(self.class_names),
            "about": self.about,
            "cost": prices,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMaps:
    """Maps of a plan that lie between the units of the network, by the units' indices.

    Attributes:
        before: in front of every unit.
        after: behind it.
    """

    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)


def export_plan(network: DynamicNetwork, card: PlanCard, rule: ExitRule | None = None) -> Plan:
    """Return the plan of a network: what its masked evaluation computes, one option of every unit at a time.

    Args and errors as those of `export_with_maps`.
    """
    return export_with_maps(network, card, rule)[0]


def export_with_maps(
    network: DynamicNetwork, card: PlanCard, rule: ExitRule | None = None
) -> tuple[Plan, UnitMaps]:
    """Return the plan of a network, and which of its maps lie between units, as far as it has these.

    BatchNorm is folded first. Every piece of the network is traced by itself to ATen operations, so that new
    routers and units need no code here as long as plans know their operations.

    Args:
        network: left untouched. A static one (without a router) becomes a plan without choices.
        card: what else the plan says.
        rule: where images leave a network with early exits; without one all leave at the last exit.

    Raises:
        ExportError: for a network that no plan can express, with the place, the reason and a way out.
    """
    _check(network, rule)
    channels = network.image_channels
    prepared = prepare(copy.deepcopy(network).float().cpu(), torch.zeros(2, channels, *card.input_size))
    writer = Writer(prepared)
    export = _Export(writer, prepared, rule, num_classes=len(card.class_names))
    walk(prepared, symbolic_image(card.input_size, channels), export)
    steps, numbers = simplified(writer.steps, export.logits)
    used = {name for ops in lists_of_ops(steps) for op in ops for name in weights_of(op)}
    document: dict[str, Any] = {
        "version": version_of(steps),
        **card.as_dict(),
        "steps": steps,
        "output": numbers[export.logits],
    }
    if rule is not None and rule.temperatures is not None:
        document["temperature"] = float(rule.temperatures[-1])
    if rule is not None and card.levels:
        document["budgets"] = budget_entries(card.levels, rule.criterion, len(card.class_names))
    if card.dial:
        document["dial"] = [asdict(level) for level in on_top_of(network.router, card.dial)]
    plan = Plan(
        document=document,
        tensors={name: tensor for name, tensor in writer.weights.tensors.items() if name in used},
    )
    before, after = (
        {index: numbers[value] for index, value in found.items() if value in numbers}
        for found in (export.maps.before, export.maps.after)
    )
    return plan, UnitMaps(before=before, after=after)


def _check(network: DynamicNetwork, rule: ExitRule | None) -> None:
    parts = [] if network.router is None else network.router.modules()
    for router in parts:
        if isinstance(router, Router) and router.plan_obstacle is not None:
            raise ExportError(router.plan_obstacle)
    if rule is not None and network.has_early_exits and not network.lets_leave:
        raise ExportError(
            "an exit rule must have exits at which images leave, got a network whose exits are there for its "
            "gates alone; leave it out"
        )
    if rule is not None and rule.num_exits != network.num_exits:
        raise ExportError(
            f"an exit rule must have the network's {network.num_exits} exits, got {rule.num_exits}"
        )
    if rule is not None and rule.criterion not in CRITERIA_OF_PLANS:
        raise ExportError(
            f"plans know no {rule.criterion} at exits; calibrate with {', '.join(CRITERIA_OF_PLANS)}"
        )


class _Export(Visitor):
    """Writes what every piece of a network computes; features and states hold traced tensors.

    Args:
        writer: of the plan.
        network: prepared.
        rule: where images leave.
        num_classes: classes of the logits.

    Attributes:
        logits: value of the plan that holds the logits of the last exit so far.
        maps: between the units so far.
    """

    def __init__(
        self, writer: Writer, network: DynamicNetwork, rule: ExitRule | None, *, num_classes: int
    ) -> None:
        super().__init__(network.router)
        self.network = network
        self.said: Any = None
        self.writer = writer
        self.rule = rule
        self.num_classes = num_classes
        self.logits = -1
        self.maps = UnitMaps()

    def call(self, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return call(self.writer, place, function, *arguments)

    def at_unit(self, index: int, unit: Unit) -> None:
        self.maps.before.update(self._here(index))
        self._write_unit(index, unit)
        self.maps.after.update(self._here(index))

    def _here(self, index: int) -> dict[int, int]:
        """Return the map where the visitor stands, by the index of a unit; none for a part of one."""
        traced = traced_of(self.x) if isinstance(self.x, SymbolicTensor) else None
        whole = isinstance(traced, Map) and traced == Map(traced.value)
        return {index: traced.value} if isinstance(traced, Map) and whole else {}

    def _write_unit(self, index: int, unit: Unit) -> None:
        if self.router is None:
            self.x = self.call(f"unit {index}", unit.execute, self.x)
            return
        step, out = self.writer.choose(traced_of(self.ask(index))), self.x
        made = []
        for option in range(unit.num_options):
            with self.writer.option(step) as results:
                if option or not unit.keeps_input:
                    out = self.call(f"unit {index}, option {option}", unit.run, option, self.x)
                made.append(traced_of(out))
                results.append(self.writer.result(made[-1]))
        with self.writer.at(f"unit {index}"):
            self.x = SymbolicTensor(self.writer.define(step, made), out.example)

    def at_exit(self, index: int, classify: Callable[[Any], Any]) -> bool:
        said = self.call(exit_place(index), classify, self.x)
        if self.network.shares_nothing:
            answer = partial(self.network.answer, index)
            said, self.said = self.call(exit_place(index), answer, said, self.said)
        if reads_exits(self.router):
            assert self.router is not None  # that reads them
            self.state = self.call(exit_place(index), self.router.see, said, self.state)
        self.logits = self.writer.dense(traced_of(said))
        if self.rule is not None and index < len(self.rule.thresholds):
            self.writer.leave(_exit(self.rule, index, self.num_classes, self.logits))
        return True


def _exit(rule: ExitRule, index: int, num_classes: int, logits: int) -> Step:
    """Return the step at which images leave by a rule."""
    temperature = 1.0 if rule.temperatures is None else rule.temperatures[index]
    return {
        "exit": {
            "logits": logits,
            "criterion": rule.criterion,
            "threshold": in_plan(rule.thresholds[index], rule.criterion, num_classes),
            "temperature": float(temperature),
        }
    }
