"""The ponder cost of a batch, image by image and stage by stage."""

from __future__ import annotations

import torch
from torch import Tensor


def ponder_loss(ponder: Tensor) -> Tensor:
    """Return the sum over stages of the mean over images."""
    batch, stages = ponder.shape
    total = torch.tensor(0.0)
    for stage in range(stages):
        of_stage = torch.tensor(0.0)
        for image in range(batch):
            of_stage = of_stage + ponder[image, stage]
        total = total + of_stage / batch
    return total
