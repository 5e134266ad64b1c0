"""Networks of timm by name, freshly initialised or with the weights that timm downloads."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from sidestep.backbones.timm_units import WrappedNetwork
from sidestep.backbones.wrapping import Units, wrap_network
from sidestep.errors import RecipeError


def check_timm_name(name: str, *, pretrained: bool) -> None:
    """Return if timm can build a network of this name, with its weights if they are wanted.

    Args:
        name: as timm says it, with or without the tag of its weights (resnet50, resnet50.a1_in1k).
        pretrained: whether weights must be there to download.

    Raises:
        RecipeError: naming the nearest names that timm knows.
    """
    known = timm.list_models()
    if name not in known and name not in (tagged := timm.list_models(pretrained=True)):
        nearest = difflib.get_close_matches(name, [*known, *tagged], n=3)
        hint = f"did you mean {' or '.join(f'timm/{match}' for match in nearest)}?"
        raise RecipeError(
            f"name must be that of a network in timm, got 'timm/{name}'; "
            + (hint if nearest else "for example timm/convnext_tiny")
        )
    if pretrained and not getattr(timm.get_pretrained_cfg(name), "has_weights", False):
        raise RecipeError(
            f"pretrained must be false for 'timm/{name}', for which timm offers no weights, got true; "
            "set init to a file of them"
        )


def build_timm(
    name: str,
    num_classes: int,
    input_size: tuple[int, int] | None = None,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    units: Units = "blocks",
) -> WrappedNetwork:
    """Return a network of timm as a backbone.

    Args:
        name: see `check_timm_name`.
        num_classes: classes of the head; a head for another number than the downloaded one's starts anew.
        input_size: height and width of the images, for networks that are built for one size, and for those
            whose blocks have to be found; timm's own if None.
        in_channels: of the images; timm sums downloaded weights of three up for one.
        pretrained: start from the weights that timm downloads.
        units: see `wrap_network`.

    Raises:
        RecipeError: when the network has no units, its patches do not fit the images, or the weights cannot
            be had.
    """
    network = build_timm_whole(name, num_classes, input_size, in_channels=in_channels, pretrained=pretrained)
    return wrap_network(network, units, input_size)


def build_timm_whole(
    name: str,
    num_classes: int,
    input_size: tuple[int, int] | None = None,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
) -> nn.Module:
    """Return a network of timm as timm makes it, with units or without; arguments as those of `build_timm`.

    Raises:
        RecipeError: when its patches do not fit the images, or the weights cannot be had.
    """
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    # None is no setting for timm, and other networks have no such setting.
    size = input_size if fixed else None
    network = _create(
        name, pretrained=pretrained, num_classes=num_classes, img_size=size, in_chans=in_channels
    )
    _check_patches(name, network)
    return network


def pretrained_state(name: str) -> dict[str, Tensor]:
    """Return the weights of a network of timm by name, with the head that they were trained with.

    Raises:
        RecipeError: when timm offers none, or they cannot be had.
    """
    check_timm_name(name, pretrained=True)
    state = _create(name, pretrained=True).state_dict()
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _create(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **settings)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise RecipeError(
            f"pretrained weights of 'timm/{name}' could not be downloaded or read ({type(error).__name__}); "
            "check the connection, or set model.init to a file of them and model.pretrained to false"
        ) from error
    return network


def _check_patches(name: str, network: nn.Module) -> None:
    embed = getattr(network, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.img_size is None:
        return
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        patch, image = (" x ".join(map(str, sides)) for sides in (embed.patch_size, embed.img_size))
        raise RecipeError(
            f"data.image_size must be a multiple of the patches of 'timm/{name}', which have {patch} pixels, "
            f"got images of {image}"
        )
