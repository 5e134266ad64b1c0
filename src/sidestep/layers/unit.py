"""Units: the places of choice of a dynamic network."""

from __future__ import annotations

from torch import Tensor, nn


class Unit(nn.Module):
    """A part of a network that can be run in several ways, one of which is chosen per image.

    Options rise in cost: 0 is the cheapest ("skip"), the last one is the whole unit ("execute"). Subclasses
    define `run`.

    Attributes:
        in_channels: channels of the input, which routers pool.
        stage: index of the stage, for weights that routers share by stage.
        num_options: number K of options.
        keeps_input: whether option 0 returns its input as it is, so that nothing has to be computed for it.
        bypass: what option 0 runs and no other option does, or None; weights of a static network lack it.
    """

    num_options = 2

    def __init__(self, *, in_channels: int, stage: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stage = stage
        self.keeps_input = False
        self.bypass: nn.Module | None = None

    @property
    def origin(self) -> nn.Module:
        """Return the module that has the unit's name in static weight files: the unit, or what it wraps."""
        return self

    def run(self, option: int, x: Tensor) -> Tensor:
        """Return the output of one option for the whole batch.

        Args:
            option: index in [0, num_options).
            x: features, one image per row.
        """
        raise NotImplementedError

    def skip(self, x: Tensor) -> Tensor:
        """Return the output of the skipped unit."""
        return self.run(0, x)

    def execute(self, x: Tensor) -> Tensor:
        """Return the output of the executed unit."""
        return self.run(self.num_options - 1, x)

    def share_of_macs(self, positions: Tensor) -> Tensor:
        """Return the (B,) share of the executed unit's MACs that its output at some positions needs.

        Here that is the share of the positions; units whose convolutions look around count what they look at.

        Args:
            positions: (B, 1, H, W) booleans; H = W = 1 stands for whole images.
        """
        return positions.float().mean(dim=(1, 2, 3))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of all options' outputs under the weights: the masked reference.

        Args:
            x: features, one image per row.
            weights: (B, K) weights of the options.
        """
        outputs = [self.run(option, x) for option in range(self.num_options)]
        shape = (-1, *[1] * (outputs[0].dim() - 1))
        parts = [w.to(out.dtype).view(shape) * out for w, out in zip(weights.unbind(1), outputs, strict=True)]
        return sum(parts[1:], parts[0])
