"""A network as a whole: no units to choose about and one exit, as members of cascades may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from sidestep.layers.first_convolution import first_in_channels
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import ExitStop, Stop


class WholeNetwork(DynamicNetwork):
    """Runs a static network for every image.

    Args:
        module: maps (B, C, H, W) images to (B, num_classes) logits.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.router = None
        self.module = module

    def stem(self, images: Tensor) -> Tensor:
        return images

    def stops(self) -> Iterator[Stop]:
        yield ExitStop(0, self.module)

    @property
    def units_before(self) -> Sequence[int]:
        return (0,)

    @property
    def image_channels(self) -> int:
        return first_in_channels(self.module)

    @property
    def static(self) -> nn.Module:
        return self.module

    def parts(self) -> dict[str, nn.Module]:
        return {"blocks": self.module}
