"""Export targets by name: what a trained network can be written as, for other programs to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidestep.data.preparation import Preparation
from sidestep.errors import ExportError
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.format import Plan, save_plan
from sidestep.plan.from_network import PlanCard, UnitMaps, export_with_maps
from sidestep.plan.levels import Level
from sidestep.routing.dial import DialLevel
from sidestep.routing.exit_rule import ExitRule
from sidestep.types import Batch, CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A trained network, and all that a program needs that runs it.

    Attributes:
        network: in evaluation mode, on the CPU; targets leave it as it is.
        cost: its price list.
        rule: where images leave a network with early exits; None where all leave at the last.
        input_size: height and width of the images in training.
        preparation: how pictures become such images; None for a run that did not note it.
        mean: of every channel of pixels in [0, 1], subtracted.
        std: of every channel, divided by.
        per_image_standardization: whether every image's own mean and deviation take the place of these.
        class_names: in the order of the logits.
        about: what people may want to know, by name: recipe, method, model and checkpoint.
        levels: budgets that the rule's thresholds can be replaced for; empty for one budget.
        dial: budgets that the gates' biases can be replaced for; empty likewise.
        validation: images with labels that nothing is reported on, read anew at every call; None where there
            are none.
        num_segments: that an image runs at most, for targets in segments; None leaves it to them.
    """

    network: DynamicNetwork
    cost: CostModel
    rule: ExitRule | None
    input_size: tuple[int, int]
    preparation: Preparation | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_image_standardization: bool
    class_names: tuple[str, ...]
    about: dict[str, str]
    levels: Sequence[Level] = ()
    dial: Sequence[DialLevel] = ()
    validation: Callable[[], Iterable[Batch]] | None = None
    num_segments: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTarget:
    """A way to write a network.

    Attributes:
        name: as `sidestep export --to` says it.
        summary: one line for lists.
        suffix: ending of the file or folder where no other is asked for, such as ".plan".
        write: (what to write, path of the file or folder) -> a few words about what was written. Raises
            ExportError for a network that the target cannot express.
        takes_segments: whether it heeds `num_segments`.
    """

    name: str
    summary: str
    suffix: str
    write: Callable[[Exportable, Path], str]
    takes_segments: bool = False


def plan_of(exportable: Exportable) -> Plan:
    """Return the plan of a network.

    Raises:
        ExportError: for a network that no plan can express.
    """
    return plan_with_maps_of(exportable)[0]


def plan_with_maps_of(exportable: Exportable) -> tuple[Plan, UnitMaps]:
    """Return the plan of a network, and which of its maps lie between units.

    Raises:
        ExportError: for a network that no plan can express.
    """
    if exportable.per_image_standardization:
        raise ExportError(
            "plans subtract one mean from all images, and data.per_image_standardization every image's own; "
            "train without it"
        )
    return export_with_maps(exportable.network, card_of(exportable), exportable.rule)


def card_of(exportable: Exportable) -> PlanCard:
    """Return what a plan of a network says beside its steps."""
    return PlanCard(
        input_size=exportable.input_size,
        preparation=exportable.preparation,
        mean=exportable.mean,
        std=exportable.std,
        class_names=exportable.class_names,
        cost=exportable.cost,
        about=exportable.about,
        levels=exportable.levels,
        dial=exportable.dial,
    )


def _write_plan(exportable: Exportable, path: Path) -> str:
    plan = plan_of(exportable)
    save_plan(path, plan)
    old = "" if exportable.preparation else "; the run is too old to say how pictures are prepared"
    count = plan.num_exits
    exits = f", {count} exit{'s' * (count > 1)} in front of the last" if count else ""
    levels = len(plan.document.get("budgets", ())) + len(plan.document.get("dial", ()))
    budgets = f", {levels} budget{'s' * (levels > 1)}" if levels else ""
    return f"{plan.num_units} units that images can skip{exits}{budgets}{old}"


PLAN = ExportTarget(
    name="plan", summary="one file for the native engine (docs/plan.md)", suffix=".plan", write=_write_plan
)
