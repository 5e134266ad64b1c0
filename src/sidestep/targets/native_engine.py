"""The native engine in evaluation: plans run on the CPU, reported and timed like any other execution."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.cost.latency_book import LatencyBook
from sidestep.errors import ExecutionError
from sidestep.evaluation.bench import ENGINE
from sidestep.evaluation.given_paths import PathRunner, Paths
from sidestep.evaluation.per_image import PerImage
from sidestep.evaluation.report import Report, Seen, report_of
from sidestep.evaluation.rivals import Runner
from sidestep.plan.format import NEWEST_VERSION
from sidestep.types import Batch, CostModel, Decisions, RoutedOutput

MISSING = "sidestep-engine is not installed; `pip install ./engine` builds it, with GCC or Clang"
TOO_OLD = "sidestep-engine must be as new as sidestep, and is older; `pip install ./engine` builds it again"

EnginePrecision = Literal["auto", "float32", "bfloat16"]


def engine_installed() -> bool:
    """Return whether the engine can be imported."""
    return importlib.util.find_spec("sidestep_engine") is not None


def engine_of(plan: bytes, precision: EnginePrecision = "auto") -> Any:
    """Return the engine of a plan, a `sidestep_engine.Engine`.

    It has as many threads as PyTorch, but no more than there are processors for: PyTorch counts those of the
    machine, whatever the CPU quota of a container.

    Args:
        plan: the content of a plan file.
        precision: of maps and weights; "auto" takes bfloat16 where the processor multiplies it natively.

    Raises:
        ExecutionError: when the engine is not installed or too old, or cannot run the plan in that precision
            here.
    """
    if not engine_installed():
        raise ExecutionError(MISSING)
    import sidestep_engine

    if not hasattr(sidestep_engine, "available_processors"):
        raise ExecutionError(TOO_OLD)
    threads = min(torch.get_num_threads(), sidestep_engine.available_processors())
    try:
        return sidestep_engine.Engine(
            sidestep_engine.parse_plan(plan), precision=precision, num_threads=threads
        )
    except sidestep_engine.PlanError as error:
        if getattr(sidestep_engine, "NEWEST_VERSION", 1) < NEWEST_VERSION:
            raise ExecutionError(TOO_OLD) from error
        raise ExecutionError(f"the engine cannot run this network: {error}") from error


def evaluate_engine(
    engine: Any,
    batches: Iterable[Batch],
    cost: CostModel,
    *,
    num_classes: int,
    latency: LatencyBook | None = None,
    per_image: PerImage | None = None,
) -> Report:
    """Return the report of an engine on batches, as `evaluate_network` does of a network.

    Args:
        engine: the engine.
        batches: normalised images with labels.
        cost: the price list of the network that was exported.
        num_classes: classes of the labels.
        latency: the latency book of the network, or None.
        per_image: notes what was said of every image, or None.
    """
    seen = Seen()
    for batch in batches:
        output = routed(engine(batch.images.cpu().numpy()), cost, exits_in(engine.plan.steps))
        seen.add(output, batch.labels, cost)
        if per_image is not None:
            per_image.add(output, batch)
    return report_of(
        seen, cost, num_classes=num_classes, execution=ENGINE, decisions="argmax", latency=latency
    )


def at_budget(engine: Any, images: Any, budget: float) -> Any:
    """Return what an engine says about images within a budget.

    Args:
        engine: the engine.
        images: as it takes them.
        budget: largest mean MACs per image, as a fraction of the full network's.

    Raises:
        ExecutionError: for a budget that its plan does not have, or an engine that is too old.
    """
    import sidestep_engine

    if not hasattr(engine.plan, "levels"):
        raise ExecutionError(TOO_OLD)
    try:
        return engine(images, budget=budget)
    except sidestep_engine.PlanError as error:
        raise ExecutionError(f"{error}") from error


def engine_runner(engine: Any) -> Runner:
    """Return the engine as a way from images to class scores."""
    return Runner(
        convert=lambda images: images.contiguous().numpy(), run=lambda images: engine(images).logits
    )


def engine_paths(engine: Any, *, chooses: bool) -> PathRunner:
    """Return the engine as a way to run images along given paths.

    Args:
        engine: the engine.
        chooses: whether its plan has a choice for every unit; one without executes them all.
    """

    def run(images: Any, paths: Paths) -> Any:
        options = paths.options if chooses else paths.options[:, :0]
        return engine(images, options=options.numpy(), exits=paths.exits.numpy())

    return PathRunner(convert=lambda images: images.contiguous().numpy(), run=run)


def exits_in(steps: Sequence[dict[str, Any]]) -> int:
    """Return the number of exits in front of the end, given the steps of a plan."""
    return sum("exit" in step for step in steps)


def routed(output: Any, cost: CostModel, num_exits: int) -> RoutedOutput:
    """Return what an engine says as networks say it.

    Args:
        output: of the engine.
        cost: price list of the network.
        num_exits: early exits of the plan: none where nobody calibrated the network, so that all images stay
            to its last exit.
    """
    options, left = torch.from_numpy(output.options), torch.from_numpy(output.exits)
    if cost.exits is not None:
        left = left + (len(cost.exits) - 1 - num_exits)
    num_units, num_options = cost.options.shape
    if not options.shape[1]:  # a static network has no choices: all units in front of the exit ran
        ran = torch.arange(num_units).expand(len(options), -1)
        ran = ran < num_units if cost.exit_units is None else ran < cost.exit_units[left].unsqueeze(1)
        options = torch.where(ran, num_options - 1, -1)
    asked = options >= 0
    weights = F.one_hot(options.clamp_min(0), max(num_options, 1)).float() * asked.unsqueeze(2)
    exits = None
    if cost.exits is not None:
        exits = F.one_hot(left, len(cost.exits)).float()
    decisions = Decisions(weights=weights, asked=asked.float(), exits=exits)
    return RoutedOutput(
        logits=torch.from_numpy(output.logits),
        decisions=decisions,
        temperatures=torch.from_numpy(output.temperatures),
    )


class EngineNetwork(nn.Module):
    """An engine that answers as a network does whose images all stay to the end, with what all exits say.

    Args:
        engine: of a plan with all exits of the network, if it has some, by confidence.
        cost: the network's price list.
    """

    def __init__(self, engine: Any, cost: CostModel) -> None:
        super().__init__()
        self.engine = engine
        self.cost = cost
        self.num_exits = exits_in(engine.plan.steps)

    def forward(self, images: Tensor) -> RoutedOutput:
        """Return what the engine says about (B, C, H, W) images."""
        pixels = images.cpu().numpy()
        if not self.num_exits:
            return routed(self.engine(pixels), self.cost, 0)
        # All leave at one exit after the other, and then none at any.
        never, always = np.float32(2), np.float32(-1)
        rules = np.where(np.eye(self.num_exits + 1, self.num_exits, dtype=bool), always, never)
        said = [self.engine(pixels, thresholds=np.tile(rule, (len(pixels), 1))) for rule in rules]
        logits = torch.stack([torch.from_numpy(each.logits) for each in said])
        return replace(routed(said[-1], self.cost, self.num_exits), exit_logits=logits)
