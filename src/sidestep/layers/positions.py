"""Which positions of its maps a chain of convolutions has to compute, and what share of its MACs that is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def share_of_macs(convolutions: Sequence[nn.Conv2d], positions: Tensor) -> Tensor:
    """Return the (B,) share of a chain's MACs that its output at some positions needs, in [0, 1].

    The last convolution is counted where its output is wanted, the one before it where the last one looks,
    and so on: for two 3x3 convolutions at the positions and at their 3x3 dilation (SACT, section 3). A
    position costs the whole kernel at borders too, as everywhere in the cost book.

    Args:
        convolutions: of stride 1 and one after the other, in order of execution.
        positions: (B, 1, H, W) booleans, true where the output is wanted; H = W = 1 stands for whole images.
    """
    wanted = positions.float()
    share, total = torch.zeros_like(wanted[:, 0, 0, 0]), 0
    for convolution in reversed(convolutions):
        macs = convolution.weight.numel()
        share, total = share + macs * wanted.mean(dim=(1, 2, 3)), total + macs
        wanted = F.max_pool2d(wanted, convolution.kernel_size, stride=1, padding=_margins(convolution))
    return share / total


def _margins(convolution: nn.Conv2d) -> tuple[int, ...]:
    return tuple(size // 2 for size in convolution.kernel_size)
