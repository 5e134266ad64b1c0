"""What a network does on a set of images: accuracy, cost, and the paths it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sidestep.backbones.routed import RoutedNetwork, masked
from sidestep.evaluation.sampled import Sampled, samplers
from sidestep.layers.unit import Execute
from sidestep.types import Batch, CostModel, Decisions


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

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return asdict(self)


def evaluate_network(
    network: RoutedNetwork,
    batches: Iterable[Batch],
    cost: CostModel,
    *,
    num_classes: int,
    execute: Execute = masked,
    execution: str = "masked",
    sampled: Sampled | None = None,
) -> Report:
    """Return the report of a network on batches, by arg-max decisions without noise if none are asked for.

    The network is put in evaluation mode and left in the mode it came in. Where soft decisions are drawn,
    outputs are mixed, and costs and keep rates are those of the weights, though every unit is computed.

    Args:
        network: the network.
        batches: normalised images with labels.
        cost: its price list.
        num_classes: classes of the labels.
        execute: how units are run.
        execution: its name, for the report.
        sampled: what decisions are drawn from, if not the arg-max; static and halting networks draw none.

    Raises:
        ExecutionError: when soft decisions are drawn and the execution is not masked.
    """
    was_training = network.training
    network.eval()
    correct, labels, decisions, ponder = [], [], [], []
    drawn = samplers(sampled, hard=None if execute is masked else execution)
    with torch.inference_mode():
        for batch, sampler in zip(batches, drawn, strict=False):
            output = network(batch.images, sampler=sampler, execute=execute)
            correct.append((output.logits.argmax(dim=1) == batch.labels).cpu())
            labels.append(batch.labels.cpu())
            decisions.append(_on_cpu(output.decisions))
            if output.ponder is not None:
                ponder.append(output.ponder.float().cpu())
    network.train(was_training)
    # Sums over images are not to be rounded to bfloat16, whatever the network ran in.
    with torch.autocast("cpu", enabled=False):
        return _report(
            _joined(decisions),
            torch.cat(correct),
            _class_masks(torch.cat(labels), num_classes),
            cost,
            execution,
            "argmax" if sampled is None else "sampled",
            torch.cat(ponder).double().mean(dim=0).tolist() if ponder else None,
        )


def _on_cpu(decisions: Decisions) -> Decisions:
    """Return what the report needs of a batch's decisions."""
    asked = decisions.asked
    return Decisions(
        weights=decisions.weights.float().cpu(), asked=None if asked is None else asked.float().cpu()
    )


def _joined(batches: list[Decisions]) -> Decisions:
    asked = [decisions.asked for decisions in batches if decisions.asked is not None]
    return Decisions(
        weights=torch.cat([decisions.weights for decisions in batches]),
        asked=torch.cat(asked) if asked else None,
    )


def _class_masks(labels: Tensor, num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, num_classes).float()


def _report(
    decisions: Decisions,
    correct: Tensor,
    classes: Tensor,
    cost: CostModel,
    execution: str,
    kind: str,
    ponder: list[float] | None,
) -> Report:
    executed = decisions.execution()
    per_image = executed.sum(dim=1)
    macs = cost.per_sample(decisions).double()
    bare = cost.per_sample(decisions, routers=False).double()
    per_class = classes.T @ executed / classes.sum(dim=0).clamp_min(1).unsqueeze(1)
    return Report(
        execution=execution,
        decisions=kind,
        num_images=len(correct),
        accuracy=correct.double().mean().item(),
        gflops=2e-9 * macs.mean().item(),
        gflops_std=2e-9 * macs.std(unbiased=False).item(),
        gflops_without_routers=2e-9 * bare.mean().item(),
        fraction_of_full=macs.mean().item() / cost.full_macs,
        keep_rates=executed.double().mean(dim=0).tolist(),
        keep_rates_per_class=per_class.double().tolist(),
        num_paths=len(torch.unique(decisions.paths(), dim=0)),
        executed_mean=per_image.mean().item(),
        executed_std=per_image.std(unbiased=False).item(),
        ponder=ponder,
    )
