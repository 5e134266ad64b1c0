"""What convolutions and linear layers really multiplied, counted where torch is called."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
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


class CountedOperations(TorchFunctionMode):
    """Counts as the released code of RANet and MSDNet does, with a price for every exit.

    Multiply-adds of convolutions and linear layers, the latter's biases, elements that pass a ReLU and
    elements that are pooled count one each; BatchNorm, concatenation and interpolation are free.

    Attributes:
        exits: all operations so far, at every linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.exits: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.conv2d:
            self.total += out.numel() * args[1][0].numel()
        elif func in (torch.relu, functional.relu):
            self.total += out.numel()
        elif func is functional.avg_pool2d:
            self.total += out.numel() * args[1] ** 2
        elif func is Tensor.mean:
            self.total += args[0].numel()
        elif func in (torch.max_pool2d, functional.max_pool2d):
            self.total += out.numel() * args[1] ** 2
        elif func is functional.linear:
            self.total += out.numel() * args[1].shape[1] + out.numel()
            self.exits.append(self.total)
        return out


def in_millions(totals: Sequence[int], published: str) -> str:
    """Return totals as a table prints them, with as many decimals as the published numbers have.

    The tables were rounded twice, to hundredths and then to what they print: 63.648 is 63.65 is 63.7.
    """
    digits = Decimal(1).scaleb(-len(published.split()[0].partition(".")[2]))
    hundredths = [(Decimal(total) / 10**6).quantize(Decimal("0.01"), ROUND_HALF_UP) for total in totals]
    return " ".join(str(total.quantize(digits, ROUND_HALF_UP)) for total in hundredths)
