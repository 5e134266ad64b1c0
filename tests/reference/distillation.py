"""Hinton's distillation loss, class by class."""

from __future__ import annotations

import math

from torch import Tensor


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> float:
    total = 0.0
    for student_row, teacher_row in zip(logits.tolist(), teacher_logits.tolist(), strict=True):
        student, teacher = _softmax(student_row, temperature), _softmax(teacher_row, temperature)
        for q, p in zip(student, teacher, strict=True):
            total += p * (math.log(p) - math.log(q))
    return temperature**2 * total / logits.shape[0]


def _softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]
