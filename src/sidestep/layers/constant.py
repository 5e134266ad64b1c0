"""Numbers of a setting as a tensor that is put on its device once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a float32 tensor that nobody may change.

    A copy for every step would make the host wait for a GPU, and cannot be recorded in a CUDA graph.

    Args:
        values: the numbers.
        device: where they are needed.
    """
    # One that an evaluation asks for first serves training as well.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)
