"""A gate written out for one image at a time, in evaluation mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def logits(inner: nn.Sequential, decide: nn.Linear, features: Tensor, *, activation: bool) -> Tensor:
    rows = []
    for image in features.double():
        pooled = torch.stack([channel.sum() / channel.numel() for channel in image])
        hidden = inner[0].weight.double() @ pooled + inner[0].bias.double()
        if len(inner) > 1:
            norm = inner[1]
            hidden = (hidden - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
            hidden = hidden * norm.weight.double() + norm.bias.double()
        if activation:
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
        rows.append(decide.weight.double() @ hidden + decide.bias.double())
    return torch.stack(rows)
