"""Calibration: probabilities that say how often a classifier is right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

_NUM_BINS = 15
_STEPS = 100


def fit_temperatures(exit_logits: Tensor, labels: Tensor) -> list[float]:
    """Return the temperature T_k of every exit with the smallest mean -log softmax(z_k / T_k)[y] (Guo 2017).

    Classes stay what they are, probabilities become honest: a threshold means the same at all exits.

    Args:
        exit_logits: (E, N, C) on images that were not trained on.
        labels: (N,) classes.
    """
    logits = exit_logits.detach().double()
    # Logarithms keep temperatures above 0; the exits share no parameter, so one sum fits them all.
    logs = torch.zeros(len(logits), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = logits / logs.exp().view(-1, 1, 1)
        loss = torch.stack([F.cross_entropy(z, labels) for z in scaled]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logs.detach().exp().tolist()


def calibration_errors(exit_logits: Tensor, labels: Tensor, temperatures: list[float]) -> list[float]:
    """Return the expected calibration error of every exit, in [0, 1], over 15 equal bins of confidence.

    Args:
        exit_logits: (E, N, C).
        labels: (N,) classes.
        temperatures: by which the logits of every exit are divided.
    """
    return [
        multiclass_calibration_error(
            (logits.float() / temperature).softmax(dim=1),
            labels,
            num_classes=logits.shape[1],
            n_bins=_NUM_BINS,
            norm="l1",
        ).item()
        for logits, temperature in zip(exit_logits, temperatures, strict=True)
    ]
