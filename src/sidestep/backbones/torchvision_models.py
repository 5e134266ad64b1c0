"""Networks of torchvision by name, freshly initialised or with the weights that torchvision downloads."""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torchvision
from torch import nn

from sidestep.backbones.timm_units import WrappedNetwork
from sidestep.backbones.wrapping import Units, wrap_network
from sidestep.errors import RecipeError


def check_torchvision_name(name: str) -> None:
    """Return if torchvision has a classifier of this name.

    Raises:
        RecipeError: naming the nearest names that it has.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(f'torchvision/{match}' for match in nearest)}?"
    raise RecipeError(
        f"name must be that of a network in torchvision, got 'torchvision/{name}'; "
        + (hint if nearest else "for example torchvision/resnet18")
    )


def build_torchvision(
    name: str,
    num_classes: int,
    input_size: tuple[int, int] | None = None,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    units: Units = "blocks",
) -> WrappedNetwork:
    """Return a network of torchvision as a backbone.

    Args:
        name: see `check_torchvision_name`.
        num_classes: classes of the head; one for another number than the downloaded one's starts anew.
        input_size: height and width of the images.
        in_channels: of the images; downloaded weights of three are summed up for one.
        pretrained: start from the weights that torchvision downloads, its best ones.
        units: see `wrap_network`.

    Raises:
        RecipeError: when the network has no units, its patches do not fit the images, or the weights cannot
            be had.
    """
    settings: dict[str, Any] = {} if pretrained else {"num_classes": num_classes}
    if name.startswith("vit_") and input_size is not None:
        settings |= _one_size(name, input_size)
    network = _create(name, pretrained, settings)
    if pretrained:
        _set_head(network, num_classes)
    if in_channels != 3:
        _set_channels(network, in_channels)
    return wrap_network(network, units, input_size)


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    try:
        weights = "DEFAULT" if pretrained else None
        network: nn.Module = torchvision.models.get_model(name, weights=weights, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        raise RecipeError(
            f"pretrained weights of 'torchvision/{name}' could not be downloaded, read or fitted "
            f"({type(error).__name__}); check the connection and the image size, or set model.init to a file "
            "of them and model.pretrained to false"
        ) from error
    return network


def _one_size(name: str, size: tuple[int, int]) -> dict[str, int]:
    """Return the setting of a ViT, which is built for square images of one size."""
    height, width = size
    patch = int(name.rpartition("_")[2])
    if height != width or height % patch:
        raise RecipeError(
            f"data.image_size must be a square of whole patches for 'torchvision/{name}', which have {patch} "
            f"pixels, got images of {height} x {width}; a ViT of timm takes other shapes"
        )
    return {"image_size": height}


def _set_head(network: nn.Module, num_classes: int) -> None:
    """Let the last linear layer start anew where it has another number of classes."""
    name, last = [each for each in network.named_modules() if isinstance(each[1], nn.Linear)][-1]
    if last.out_features != num_classes:
        network.set_submodule(name, nn.Linear(last.in_features, num_classes))


def _set_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take images of other channels: three are summed up, and shared out again."""
    name, first = next(each for each in network.named_modules() if isinstance(each[1], nn.Conv2d))
    made = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        bias=first.bias is not None,
    )
    with torch.no_grad():
        made.weight.copy_(first.weight.sum(1, keepdim=True) / channels)
        if first.bias is not None and made.bias is not None:
            made.bias.copy_(first.bias)
    network.set_submodule(name, made)
