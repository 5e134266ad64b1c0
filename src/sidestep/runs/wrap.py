"""A pretrained network made dynamic in one call."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from sidestep.backbones.wrapping import Units, wrap_network
from sidestep.errors import RecipeError
from sidestep.methods import METHODS, Method
from sidestep.networks.routed import RoutedNetwork, Wrapping
from sidestep.runs.recipe import method_settings


def wrap(
    model: nn.Module,
    method: str = "rdi_net",
    *,
    units: Units = "blocks",
    image_size: tuple[int, int] | None = None,
    **settings: Any,
) -> RoutedNetwork:
    """Return a network with a method's routers in front of its residual blocks.

    Weights are shared with `model`, not copied, and with every unit on the outputs are the same. Routers are
    fresh, on the device and in the dtype of its weights, and everything is in the mode that it was in.

    >>> import sidestep, timm, torch
    >>> model = timm.create_model("convnext_atto", num_classes=5)  # pretrained=True for trained weights
    >>> network = sidestep.wrap(model, method="rdi_net", target=0.6, router={"dim": 32}).eval()
    >>> output = network(torch.zeros(2, 3, 64, 64), execution=sidestep.gathered)
    >>> output.logits.shape, output.decisions.paths().shape
    (torch.Size([2, 5]), torch.Size([2, 12]))

    Args:
        model: of timm or torchvision, with residual blocks, or one of your own.
        method: name of the method, see `sidestep methods`; one that chooses which units run, as those with
            networks of their own (act, sact, ranet, msdnet) do not.
        units: "blocks" finds the residual blocks, "sublayers" makes attention and MLP of a ViT block two
            units, and names of modules make these the units, which are tried out.
        image_size: height and width of the images; where blocks have to be found and None is given, usual
            sizes are tried.
        settings: of the method, named and checked as in a recipe; groups are dictionaries. Those of losses
            and samplers (target and gate_mode of RDI-Net) matter to training alone.

    Raises:
        RecipeError: for settings that a recipe would refuse, all at once, for a method that has a network of
            its own, for a model without residual blocks, and for named modules that are none.
    """
    if method in METHODS:
        _check_wraps(METHODS[method])
    chosen = method_settings(method, settings, "wrap")
    backbone = wrap_network(model, units, image_size)
    router = METHODS[method].router(backbone, chosen)
    if router is not None:
        weight = next(model.parameters())
        router.to(device=weight.device, dtype=weight.dtype).train(model.training)
    network = RoutedNetwork(backbone, router)
    network.wrapping = Wrapping(
        method=method,
        units=units if isinstance(units, str) else list(units),
        settings=copy.deepcopy(settings),
    )
    # train() would reach parts of the model that were set apart, such as a BatchNorm that is frozen.
    network.training = network.exits.training = model.training
    return network


def _check_wraps(method: Method[Any]) -> None:
    """Refuse a method whose decisions a `RoutedNetwork` does not carry out."""
    if method.model is None and method.network is RoutedNetwork:
        return
    way_out = f"train a recipe with model.name {method.model or 'timm/<name>'}"
    fitting = ", ".join(
        name for name, each in METHODS.items() if each.model is None and each.network is RoutedNetwork
    )
    raise RecipeError(
        f"method must choose which units run to wrap a network, as {fitting} do, got {method.name!r}, which "
        f"has a network of its own; {way_out}"
    )
