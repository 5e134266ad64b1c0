"""A plan beside the same on bytes, on images that neither has seen: accuracy, cost, and what has changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sidestep.evaluation.report import Report, Seen, report_of
from sidestep.plan.format import Plan
from sidestep.quantisation.changes import Change, change_between
from sidestep.quantisation.sensitivity import Layer
from sidestep.targets.native_engine import exits_in, routed
from sidestep.targets.torch_plan import PlanOutput, TorchPlan
from sidestep.types import Batch, CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationReport:
    """What quantising a network has cost.

    Attributes:
        calibrated_on: number of images that ranges and errors were found on.
        real: accuracy, cost and paths of the plan in float32.
        quantised: of the plan on bytes.
        change: of decisions and predictions between the two.
        num_bytes: size of the plan in float32.
        num_bytes_quantised: of the plan on bytes.
        layers: all convolutions and linear layers, in order.
    """

    calibrated_on: int
    real: Report
    quantised: Report
    change: Change
    num_bytes: int
    num_bytes_quantised: int
    layers: list[Layer]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return asdict(self)


def compare(
    real: Plan, quantised: Plan, batches: Iterable[Batch], cost: CostModel, *, num_classes: int
) -> tuple[Report, Report, Change]:
    """Return the reports of two plans of a network on the same images, and what has changed between them.

    Args:
        real: in float32.
        quantised: on bytes.
        batches: normalised images with labels.
        cost: the network's price list.
        num_classes: classes of the labels.
    """
    plans = [TorchPlan(real), TorchPlan(quantised)]
    said: list[list[PlanOutput]] = [[], []]
    seen = [Seen(), Seen()]
    for batch in batches:
        for plan, outputs, notes in zip(plans, said, seen, strict=True):
            outputs.append(plan(batch.images.cpu()))
            notes.add(routed(outputs[-1], cost, exits_in(plan.plan.steps)), batch.labels, cost)
    reports = [
        report_of(notes, cost, num_classes=num_classes, execution=name, decisions="argmax")
        for name, notes in zip(("float32 plan", "int8 plan"), seen, strict=True)
    ]
    return reports[0], reports[1], change_between(*said, num_exits=real.num_exits)
