"""Units that a user has named, or that were found in a network of unknown make, tried out on real numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidestep.errors import RecipeError

# Rounding differs with the shape of a batch; what keeps a state, or mixes images, differs by more.
_RTOL, _ATOL = 1e-4, 1e-5


def try_units(
    network: nn.Module,
    names: list[str],
    size: tuple[int, int],
    channels: int,
    wrapped: Callable[[nn.Module], nn.Module],
) -> None:
    """Return if units may be skipped for some images of a batch, and for the network's next images not.

    Args:
        network: left as it is; a copy runs.
        names: of the units, in order of execution.
        size: height and width of the images.
        channels: of the images.
        wrapped: makes a backbone of a copy, whose outputs have to be the copy's.

    Raises:
        RecipeError: for a unit that remembers something from one call to the next, or whose output for an
            image depends on the other images; for a network that does, or that computes something else
            without its own forward.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return  # nothing that could be computed
    trial = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    first, second = (_images(seed, size, channels) for seed in (0, 1))
    state = {name: tensor.clone() for name, tensor in trial.state_dict().items()}
    with torch.no_grad():
        with _recorded(trial, names) as calls:
            expected = trial(first)
        trial(second)
        for name in reversed(names):
            _try(trial.get_submodule(name), name, *calls[name])
        again = trial(first)
        changed = [key for key, tensor in trial.state_dict().items() if not torch.equal(tensor, state[key])]
        if changed or not _same(again, expected):
            what = f"changes {changed[0]}" if changed else "returns something else for the same images"
            raise RecipeError(
                "model must keep no state between calls and draw nothing in evaluation mode, got a "
                f"{type(network).__name__} that {what}; move that out of its forward"
            )
        if not _same(wrapped(trial)(first), expected):
            raise RecipeError(
                "model must compute the same from module to module as at once, got a "
                f"{type(network).__name__} that does not; drop its hooks, or write a Backbone "
                "(docs/extending.md)"
            )


def _try(unit: nn.Module, name: str, x: Tensor, expected: Tensor) -> None:
    """Refuse a unit that returns something else for an image than it did before, among other images."""
    if not _same(unit(x), expected):
        raise RecipeError(
            f"units must keep no state between calls, got {name!r}, which returns something else for the "
            "same features after other images; name units without"
        )
    if len(expected) != len(x) or not all(_same(unit(x[i : i + 1]), expected[i : i + 1]) for i in (0, 1)):
        raise RecipeError(
            f"units must compute every image by itself, got {name!r}, whose output depends on the other "
            "images of a batch; name units for which it does not"
        )


@contextmanager
def _recorded(network: nn.Module, names: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield what units are given and return while this is open, by name."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = args[0].clone(), output.clone()

        return keep

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _images(seed: int, size: tuple[int, int], channels: int) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=_RTOL, atol=_ATOL * max(1.0, float(second.abs().max())))
