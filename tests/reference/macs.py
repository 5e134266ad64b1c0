"""What convolutions and linear layers really multiplied, counted where torch is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class CountedMacs(TorchFunctionMode):
    """Collects the MACs of every convolution, linear layer and LSTM cell that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, functional.linear):
            weight: Tensor = args[1]
            # (out, in / groups, height, width) or (out, in): all but the first are summed over.
            self.macs.append(out.numel() * weight[0].numel())
        if func is torch.lstm_cell:
            inputs, _, weight_ih, weight_hh, *_ = args
            self.macs.append(inputs.shape[0] * (weight_ih.numel() + weight_hh.numel()))
        return out
