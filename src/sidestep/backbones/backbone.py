"""What every network that can be routed offers: a stem, units, a head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from sidestep.layers.unit import Unit


class Backbone(nn.Module):
    """A static network seen as stem, a sequence of units, and head.

    Attributes:
        tokens: whether features are (B, N, C) tokens instead of (B, C, H, W) maps.
    """

    tokens: bool = False

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

    def static_name(self, name: str) -> str:
        """Return the name that a tensor of a static weight file has here."""
        return name

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


class StagedBackbone(Backbone):
    """A backbone with stages of units named `layer1`, `layer2` and so on, as in torchvision."""

    def add_stages(self, stages: Iterable[nn.Sequential]) -> None:
        """Make stages of units parts of the network, in order of execution."""
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)

    @property
    def units(self) -> list[Unit]:
        stages = (part for name, part in self.named_children() if name.startswith("layer"))
        return [unit for stage in stages for unit in stage.children() if isinstance(unit, Unit)]
