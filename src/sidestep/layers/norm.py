"""BatchNorm and the activation behind it, as they look throughout a family of networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class NormStyle:
    """How BatchNorm and what follows it look.

    Attributes:
        leak: slope of the activation below zero: 0 is ReLU, 1 is no activation.
        eps: epsilon of BatchNorm.
    """

    leak: float
    eps: float

    def activate(self, x: Tensor, *, inplace: bool = False) -> Tensor:
        """Return max(x, leak * x)."""
        if self.leak == 1.0:
            return x
        return F.relu(x, inplace=inplace) if self.leak == 0.0 else F.leaky_relu(x, self.leak, inplace=inplace)


# What the released code of ACT and SACT has in its networks for CIFAR and for ImageNet, and without
# activation.
CIFAR = NormStyle(leak=0.1, eps=1e-3)
# Between the convolutions of a block on CIFAR the leaky ReLU is applied twice, 0.1 * 0.1.
CIFAR_INNER_LEAK = 0.01
IMAGENET = NormStyle(leak=0.0, eps=1e-5)
BARE = NormStyle(leak=1.0, eps=1e-5)
