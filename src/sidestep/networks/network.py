"""What every dynamic network is, whether it skips units, leaves at exits, or both."""

from __future__ import annotations

from torch import Tensor, nn

from sidestep.errors import RecipeError
from sidestep.layers.unit import Execute, Unit
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, argmax
from sidestep.types import RoutedOutput


def masked(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    """Return the unit's output, computed in full and blended: the reference, and the way of training."""
    out: Tensor = unit(x, weights)
    return out


class DynamicNetwork(nn.Module):
    """A network that is trained, evaluated and run by the same code as all others.

    Attributes:
        router: who decides about its units, or None.
    """

    # Without a value: one on the class would hide the module of an instance.
    router: Router | None

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that phases train or freeze, by name: "blocks", "routers", "exits"."""
        raise NotImplementedError

    @property
    def static(self) -> nn.Module:
        """Return its static rival: (B, 3, H, W) images to (B, C) logits with nothing left out."""
        raise NotImplementedError

    @property
    def shape_of_choices(self) -> tuple[int, int]:
        """Return the number L of units and the number K of options of each.

        Raises:
            RecipeError: for a network without units.
        """
        raise RecipeError("paths other than routed need a network with units, got one of exits alone")

    def forward(
        self,
        images: Tensor,
        *,
        sampler: Sampler = argmax,
        router: Router | None = None,
        execute: Execute = masked,
    ) -> RoutedOutput:
        """Return the class scores of (B, 3, H, W) images and what was executed to get them.

        Args:
            images: normalised pixels.
            sampler: how logits become weights; hard and without noise by default.
            router: asked instead of the network's own router (uniform sampling, fixed paths).
            execute: how units are run.
        """
        raise NotImplementedError
