"""What every network that can be routed offers: a stem, units, a head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from sidestep.layers.first_convolution import first_in_channels
from sidestep.layers.norm import BARE, NormStyle
from sidestep.layers.static_names import StaticNames
from sidestep.layers.unit import Unit


class Backbone(StaticNames):
    """A static network seen as stem, a sequence of units, and head.

    Attributes:
        tokens: whether features are (B, N, C) tokens instead of (B, C, H, W) maps.
        halting_style: BatchNorm and what follows it in halting units on its features. The released code of
            ACT and SACT leaves both to the defaults of its networks: a leaky ReLU behind every BatchNorm on
            CIFAR, nothing on ImageNet, where the blocks add their ReLU themselves.
    """

    tokens: bool = False
    halting_style: NormStyle = BARE

    @property
    def units(self) -> Sequence[Unit]:
        """Return the places of choice, in order of execution, all with the same number of options."""
        raise NotImplementedError

    @property
    def skip_names(self) -> set[str]:
        names = {module: name for name, module in self.named_modules()}
        return {
            f"{names[unit]}.bypass.{key}"
            for unit in self.units
            if unit.bypass is not None
            for key in unit.bypass.state_dict()
        }

    @property
    def image_channels(self) -> int:
        """Return the number of channels of the images: by default what the first convolution takes."""
        return first_in_channels(self)

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


# What released codes of this field call the parts of their ResNets: BlockDrop's stages and shortcuts, and
# the shortcuts of ConvNet-AIG's, CoDiNet's and RDI-Net's blocks.
_RELEASED_NAMES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^blocks\.(\d+)\."), lambda match: f"layer{int(match[1]) + 1}."),
    (re.compile(r"^ds\.(\d+)\."), lambda match: f"layer{int(match[1]) + 1}.0.downsample."),
    (re.compile(r"^(layer\d+\.\d+)\.shortcut\."), lambda match: f"{match[1]}.downsample."),
)


class StagedBackbone(Backbone):
    """A backbone with stages of units named `layer1`, `layer2` and so on, as in torchvision."""

    def static_name(self, name: str) -> str:
        for pattern, replacement in _RELEASED_NAMES:
            name = pattern.sub(replacement, name)
        return name

    def add_stages(self, stages: Iterable[nn.Sequential]) -> None:
        """Make stages of units parts of the network, in order of execution."""
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)

    @property
    def units(self) -> list[Unit]:
        stages = (part for name, part in self.named_children() if name.startswith("layer"))
        return [unit for stage in stages for unit in stage.children() if isinstance(unit, Unit)]
