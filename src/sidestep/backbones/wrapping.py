"""Networks of timm, of torchvision and of one's own, seen as stem, units and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from sidestep.backbones.timm_units import (
    WrappedConvNeXt,
    WrappedNetwork,
    WrappedResNet,
    WrappedSublayers,
    WrappedTransformer,
)
from sidestep.backbones.traced_network import trace_network
from sidestep.errors import RecipeError

Granularity = Literal["blocks", "sublayers"]
Units = Granularity | Sequence[str]


def wrap_network(
    network: nn.Module, units: Units = "blocks", size: tuple[int, int] | None = None
) -> WrappedNetwork:
    """Return a network as a backbone with one unit per residual block, in order of execution.

    Weights are shared with the network, not copied, and its modes are left as they are.

    Args:
        network: maps images to (B, classes) logits, and has residual blocks.
        units: "sublayers" makes attention and MLP of a ViT block of timm two units; names of modules make
            these the units.
        size: height and width of its images, for networks whose blocks have to be found; None tries usual
            ones.

    Raises:
        RecipeError: for a network in which no units are found, without sublayers, or with named modules that
            are no units.
    """
    if not isinstance(network, nn.Module):
        raise RecipeError(f"model must be a network, a torch.nn.Module, got {network!r}; build one of timm")
    if type(network).__name__ in ("OptimizedModule", "RecursiveScriptModule"):
        raise RecipeError(
            f"model must be a network as it was built, got {type(network).__name__}; wrap what it was "
            "compiled from, and compile the result"
        )
    if not isinstance(units, str):
        return trace_network(network, list(units), size)
    if units not in get_args(Granularity):
        raise RecipeError(
            f"units must be one of {', '.join(get_args(Granularity))}, or a list of modules by name, got "
            f"{units!r}; for example ['layer1.0', 'layer1.1']"
        )
    if units == "sublayers":
        return _sublayers(network)
    if WrappedResNet.fits(network):
        return WrappedResNet(network)
    if isinstance(network, ConvNeXt):
        return WrappedConvNeXt(network)
    if isinstance(network, VisionTransformer):
        return WrappedTransformer(network)
    return trace_network(network, None, size)


def _sublayers(network: nn.Module) -> WrappedSublayers:
    if isinstance(network, VisionTransformer) and all(type(block) is Block for block in network.blocks):
        return WrappedSublayers(network)
    raise RecipeError(
        "units must be 'blocks' for networks other than a VisionTransformer of plain blocks, got 'sublayers' "
        f"for a {type(network).__name__}; drop it"
    )
