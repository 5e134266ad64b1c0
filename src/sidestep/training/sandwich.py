"""Steps of a network for all budgets: every image with several budgets, and what these learn from the full.

The sandwich rule and in-place distillation of US-Nets (Yu and Huang, ICCV 2019): the full budget learns the
labels, the smallest and two random ones what the full one says of the same images. All of a step's budgets
go through the network as one batch, so that BatchNorm has the statistics of all, which evaluation has too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sidestep.internals import tree_map
from sidestep.losses.distillation import distillation_loss
from sidestep.types import Batch, Decisions, RoutedOutput

Terms = dict[str, Tensor]


def copies_of(batch: Batch, num_copies: int) -> Batch:
    """Return a batch with all images and what belongs to them several times, one copy after the other.

    Args:
        batch: without greedy decisions.
        num_copies: how often.
    """
    names = ("images", "labels", "statistics", "teacher_logits", "partners", "share")
    given = {name: value for name in names if (value := getattr(batch, name)) is not None}
    # Unlike `repeat` this keeps channels_last.
    copied: dict[str, Any] = {name: torch.cat([value] * num_copies) for name, value in given.items()}
    return replace(batch, **copied)


def parts_of(output: RoutedOutput, batch: Batch, budgets: Tensor) -> list[tuple[RoutedOutput, Batch]]:
    """Return what was computed for every copy of a batch, with the batch and its budget.

    Args:
        output: of all copies.
        batch: one copy.
        budgets: (G,) of the copies.
    """
    size = len(batch.images)
    places = [slice(first, first + size) for first in range(0, len(budgets) * size, size)]
    return [
        (_part(output, place), replace(batch, budget=budget))
        for place, budget in zip(places, budgets.unbind(), strict=True)
    ]


def _part(output: RoutedOutput, place: slice) -> RoutedOutput:
    decisions, exits = output.decisions, output.exit_logits
    weights, logits, relaxed, asked, leaving = tree_map(
        lambda value: value[place] if isinstance(value, Tensor) else value,
        (decisions.weights, decisions.logits, decisions.relaxed, decisions.asked, decisions.exits),
    )
    return RoutedOutput(
        logits=output.logits[place],
        decisions=Decisions(weights=weights, logits=logits, relaxed=relaxed, asked=asked, exits=leaving),
        exit_logits=None if exits is None else exits[:, place],
    )


def sandwich_terms(
    parts: Sequence[tuple[RoutedOutput, Batch]],
    terms: Callable[[RoutedOutput, Batch], Terms],
    *,
    distillation: float,
    exit_weights: Sequence[float],
) -> Terms:
    """Return the mean over budgets of the terms of a loss.

    Smaller budgets learn (1 - d) times the labels and d times the full budget's soft-max, exit by exit.

    Args:
        parts: of every budget, the full one first.
        terms: of a loss for one budget; that of the labels is called "task".
        distillation: d in [0, 1].
        exit_weights: of every exit's distillation; one of 1 without early exits.
    """
    found = [terms(output, batch) for output, batch in parts]
    full = _answers(parts[0][0]).detach()
    for (output, _), each in zip(parts[1:], found[1:], strict=True):
        if distillation == 0:
            break
        each["task"] = (1 - distillation) * each["task"]
        taught: Any = sum(
            weight * distillation_loss(said, wanted, temperature=1.0)
            for weight, said, wanted in zip(exit_weights, _answers(output), full, strict=True)
        )
        each["full_budget"] = distillation * taught
    names = dict.fromkeys(name for each in found for name in each)
    return {
        name: torch.stack([each[name] for each in found if name in each]).sum() / len(parts) for name in names
    }


def _answers(output: RoutedOutput) -> Tensor:
    """Return the (E, B, C) class scores of all exits."""
    return output.logits.unsqueeze(0) if output.exit_logits is None else output.exit_logits
