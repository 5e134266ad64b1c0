"""The one rule by which a tensor may be written over."""

from __future__ import annotations

import torch
from torch import Tensor


def may_overwrite(*tensors: Tensor) -> bool:
    """Return whether layers and executions may write results over these features.

    They may inside of `torch.inference_mode()`, over tensors that were made inside of it: those belong to
    the network that computes them, and nobody reads them again. Everywhere else, under `torch.no_grad()`
    too, features stay as they are. Fresh maps cost page faults, which take longer than many operations on
    them.
    """
    return torch.is_inference_mode_enabled() and all(tensor.is_inference() for tensor in tensors)
