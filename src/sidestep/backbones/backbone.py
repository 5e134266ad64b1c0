"""What every network that can be routed offers: a stem, units, a head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sidestep.layers.unit import Unit


class Backbone(nn.Module):
    """A static network seen as stem, a sequence of units, and head."""

    @property
    def units(self) -> Sequence[Unit]:
        """Return the places of choice, in order of execution, all with the same number of options."""
        raise NotImplementedError

    @property
    def origin(self) -> nn.Module:
        """Return the module that has the names of static weight files: the backbone, or what it wraps."""
        return self

    @property
    def skip_names(self) -> set[str]:
        """Return the state-dict names of what skipping alone runs, which static weight files lack."""
        units = ((name, unit) for name, unit in self.named_modules() if isinstance(unit, Unit))
        return {
            f"{name}.bypass.{key}"
            for name, unit in units
            if unit.bypass is not None
            for key in unit.bypass.state_dict()
        }

    @property
    def num_options(self) -> int:
        """Return the number K of options that every unit has."""
        return max((unit.num_options for unit in self.units), default=2)

    def stem(self, images: Tensor) -> Tensor:
        """Return the (B, C, H, W) features, or (B, N, C) tokens, in front of the first unit."""
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
