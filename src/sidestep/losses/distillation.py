"""Learning from the static origin of a dynamic network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Return T^2 * KL(teacher || student) at temperature T, batch mean (Hinton et al. 2015).

    Args:
        logits: (B, C) class scores of the student.
        teacher_logits: (B, C) class scores of the teacher; no gradient flows into them.
        temperature: T.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
