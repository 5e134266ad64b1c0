"""Losses of early exits: what every exit learns from the labels and from the last exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.layers.constant import constant
from sidestep.losses.distillation import distillation_loss

ExitWeighting = Literal["uniform", "linear", "triangle", "gauss", "exponential"]


def exit_weights(num_exits: int, weighting: ExitWeighting = "uniform") -> list[float]:
    """Return the weights of the exits' losses, whose mean is 1.

    The kinds are those of MSDNet's Lua code, the forms ours. With x = (k + 1) / E for exit k of E, and m the
    mean of all x: "uniform" weighs all the same (RANet, MSDNet), "linear" x, "triangle" 1 - |x - m|, "gauss"
    exp(-8 (x - m)^2), and "exponential" exp(x).

    Args:
        num_exits: E.
        weighting: their form.
    """
    places = [(exit + 1) / num_exits for exit in range(num_exits)]
    middle = sum(places) / num_exits
    forms: dict[ExitWeighting, Callable[[float], float]] = {
        "uniform": lambda x: 1.0,
        "linear": lambda x: x,
        "triangle": lambda x: 1 - abs(x - middle),
        "gauss": lambda x: math.exp(-8 * (x - middle) ** 2),
        "exponential": math.exp,
    }
    raw = [forms[weighting](x) for x in places]
    return [num_exits * weight / sum(raw) for weight in raw]


def exit_loss(
    exit_logits: Tensor, targets: Tensor, weights: Sequence[float], *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the scalar sum over exits of weight times cross-entropy, batch mean (MSDNet eq. 2, RANet).

    Args:
        exit_logits: (E, B, C) class scores.
        targets: (B,) classes, or (B, C) probabilities of them.
        weights: of the exits.
        label_smoothing: of every cross-entropy.
    """
    losses = torch.stack(
        [F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing) for logits in exit_logits]
    )
    return (losses * constant(tuple(weights), losses.device)).sum()


def self_distillation_loss(
    exit_logits: Tensor, weights: Sequence[float], *, temperature: float = 3.0
) -> Tensor:
    """Return the scalar sum over all exits but the last of weight times T^2 KL(last || exit), batch mean.

    The last exit teaches and gets no gradient (Zhang et al. 2019, "Be Your Own Teacher"; Phuong and Lampert
    2019, "Distillation-Based Training for Multi-Exit Architectures").

    Args:
        exit_logits: (E, B, C) class scores.
        weights: of the exits; the last one is not looked at.
        temperature: T of both soft-maxes.
    """
    *early, last = exit_logits
    losses = [distillation_loss(logits, last, temperature=temperature) for logits in early]
    return sum((w * loss for w, loss in zip(weights, losses, strict=False)), last.new_zeros(()))
