"""What a network does on a set of images: accuracy, cost, and the paths it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sidestep.cost.latency_book import LatencyBook
from sidestep.evaluation.path_information import class_bits, image_bits, path_numbers
from sidestep.evaluation.sampled import Sampled, samplers
from sidestep.execution.execution import Execution, masked
from sidestep.execution.on_bytes import SimulatedBytes
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from sidestep.types import Batch, CostModel, Decisions, RoutedOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an evaluation.

    Attributes:
        execution: how units were run.
        decisions: "argmax", or "sampled" where they were drawn.
        num_images: number of images.
        accuracy: top-1, in [0, 1].
        gflops: mean 2 x MACs per image / 1e9, routers included.
        gflops_std: its standard deviation over images.
        gflops_without_routers: the same without the routers.
        fraction_of_full: mean MACs, routers included, over the static network's.
        keep_rates: mean execution of every unit, in [0, 1].
        keep_rates_per_class: the same for the images of every class (0 for a class without images).
        num_paths: number of distinct paths.
        executed_mean: mean number of executed units per image.
        executed_std: its standard deviation over images.
        ponder: mean ponder cost N + R of every stage of a halting network, or None.
        exit_rates: share of images that leave at every early exit, or None without such.
        exit_accuracies: top-1 of every early exit on all images, or None where not all are computed.
        latency_ms: mean milliseconds per image by the latency book `latency_book`, or None without one.
        latency_book: name of the latency book.
        image_bits: mutual information of path and image in bits, see `path_information`; None where decisions
            were drawn, which have noise in their paths.
        class_bits: that of path and class, less what chance would say.
    """

    execution: str
    decisions: str
    num_images: int
    accuracy: float
    gflops: float
    gflops_std: float
    gflops_without_routers: float
    fraction_of_full: float
    keep_rates: list[float]
    keep_rates_per_class: list[list[float]]
    num_paths: int
    executed_mean: float
    executed_std: float
    ponder: list[float] | None
    exit_rates: list[float] | None = None
    exit_accuracies: list[float] | None = None
    latency_ms: float | None = None
    latency_book: str | None = None
    image_bits: float | None = None
    class_bits: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return asdict(self)


class Notes(Protocol):
    """What takes notes while images are evaluated, such as `PerImage`."""

    def add(self, output: RoutedOutput, batch: Batch) -> None:
        """Note what was said of a batch."""
        ...


def evaluate_network(
    network: DynamicNetwork | SimulatedBytes,
    batches: Iterable[Batch],
    cost: CostModel,
    *,
    num_classes: int,
    execution: Execution = masked,
    sampled: Sampled | None = None,
    rule: ExitRule | None = None,
    latency: LatencyBook | None = None,
    per_image: Notes | None = None,
) -> Report:
    """Return the report of a network on batches, by arg-max decisions without noise if none are asked for.

    The network is put in evaluation mode and left in the mode it came in. Where soft decisions are drawn,
    outputs are mixed, and costs and keep rates are those of the weights, though every unit is computed.

    Args:
        network: the network.
        batches: normalised images with labels.
        cost: its price list.
        num_classes: classes of the labels.
        execution: how it is run.
        sampled: what decisions are drawn from, if not the arg-max; static and halting networks draw none.
        rule: where images leave a network with early exits; without one all leave at the last.
        latency: its latency book, or None.
        per_image: notes what was said of every image, or None.

    Raises:
        ExecutionError: when soft decisions are drawn and the execution is not masked, or for a cascade
            without early exits or without a rule.
    """
    was_training = network.training
    network.eval()
    seen = Seen()
    drawn = samplers(sampled, execution)
    with torch.inference_mode():
        for batch, sampler in zip(batches, drawn, strict=False):
            output = network(batch.images, sampler=sampler, execution=execution, rule=rule)
            seen.add(output, batch.labels, cost)
            if per_image is not None:
                per_image.add(output, batch)
    network.train(was_training)
    return report_of(
        seen,
        cost,
        num_classes=num_classes,
        execution=execution.name,
        decisions="argmax" if sampled is None else "sampled",
        latency=latency,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a report needs of all batches, on the CPU: a list for every figure, one item per batch."""

    correct: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)
    exits: list[Tensor] = field(default_factory=list)
    ponder: list[Tensor] = field(default_factory=list)
    exit_correct: list[Tensor] = field(default_factory=list)

    def add(self, output: RoutedOutput, labels: Tensor, cost: CostModel) -> None:
        """Note a batch."""
        decisions = output.decisions
        self.correct.append((output.logits.argmax(dim=1) == labels).cpu())
        self.labels.append(labels.cpu())
        self.weights.append(decisions.weights.float().cpu())
        if decisions.asked is not None:
            self.asked.append(decisions.asked.float().cpu())
        if decisions.exits is not None:
            self.exits.append(decisions.exits.cpu())
        if output.ponder is not None:
            self.ponder.append(output.ponder.float().cpu())
        if output.exit_logits is not None:
            self.exit_correct.append((output.exit_logits.argmax(dim=2) == labels).T.cpu())

    def decisions(self) -> Decisions:
        """Return the decisions about all images."""
        return Decisions(
            weights=torch.cat(self.weights),
            asked=torch.cat(self.asked) if self.asked else None,
            exits=torch.cat(self.exits) if self.exits else None,
        )


def report_of(
    seen: Seen,
    cost: CostModel,
    *,
    num_classes: int,
    execution: str,
    decisions: str,
    latency: LatencyBook | None = None,
) -> Report:
    """Return the report of what was seen.

    Args:
        seen: all batches.
        cost: the price list of the network.
        num_classes: classes of the labels.
        execution: how the network was run.
        decisions: "argmax" or "sampled".
        latency: the latency book of the network, or None.
    """
    # Sums over images are not to be rounded to bfloat16, whatever the network ran in.
    with torch.autocast("cpu", enabled=False):
        report = _report(seen, cost, num_classes, execution, decisions)
        if latency is None:
            return report
        ms = latency.prices.per_sample(seen.decisions()).double().mean().item()
        return replace(report, latency_ms=ms, latency_book=latency.name)


def _report(seen: Seen, cost: CostModel, num_classes: int, execution: str, decisions: str) -> Report:
    decided = seen.decisions()
    executed, correct, labels = decided.execution(), torch.cat(seen.correct), torch.cat(seen.labels)
    paths = path_numbers(decided)
    per_image = executed.sum(dim=1)
    macs = cost.per_sample(decided).double()
    bare = cost.per_sample(decided, routers=False).double()
    classes = torch.nn.functional.one_hot(labels, num_classes).float()
    per_class = classes.T @ executed / classes.sum(dim=0).clamp_min(1).unsqueeze(1)
    return Report(
        execution=execution,
        decisions=decisions,
        num_images=len(correct),
        accuracy=correct.double().mean().item(),
        gflops=2e-9 * macs.mean().item(),
        gflops_std=2e-9 * macs.std(unbiased=False).item(),
        gflops_without_routers=2e-9 * bare.mean().item(),
        fraction_of_full=macs.mean().item() / cost.full,
        keep_rates=executed.double().mean(dim=0).tolist(),
        keep_rates_per_class=per_class.double().tolist(),
        num_paths=int(paths.max()) + 1,
        executed_mean=per_image.mean().item(),
        executed_std=per_image.std(unbiased=False).item(),
        ponder=torch.cat(seen.ponder).double().mean(dim=0).tolist() if seen.ponder else None,
        exit_rates=None if decided.exits is None else decided.exits.double().mean(dim=0).tolist(),
        exit_accuracies=(
            torch.cat(seen.exit_correct).double().mean(dim=0).tolist() if seen.exit_correct else None
        ),
        image_bits=image_bits(paths) if decisions == "argmax" else None,
        class_bits=class_bits(paths, labels),
    )
