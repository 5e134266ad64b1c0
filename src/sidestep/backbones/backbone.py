"""What every network that can be routed offers: a stem, units, a head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sidestep.layers.residual import ResidualUnit


class Backbone(nn.Module):
    """A static network seen as stem, a sequence of units, and head."""

    @property
    def units(self) -> Sequence[ResidualUnit]:
        """Return the places of choice, in order of execution."""
        raise NotImplementedError

    def stem(self, images: Tensor) -> Tensor:
        """Return the (B, C, H, W) features in front of the first unit."""
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        """Return the (B, classes) logits of the last unit's output."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, classes) logits of the static network: every unit executed."""
        x = self.stem(images)
        for unit in self.units:
            x = unit.execute(x)
        return self.head(x)
