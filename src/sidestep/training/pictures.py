"""Some validation images with what a network says about them, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from sidestep.networks.network import DynamicNetwork
from sidestep.types import Batch, CostModel

MOST_PICTURES = 16
_ACROSS = 4
# Inches: a picture with what is said above it, the longer side of the pixels, and the gap between both.
_WIDTH, _HEIGHT, _SIDE, _GAP = 2.2, 2.4, 2.0, 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image and what a network says about it.

    Attributes:
        pixels: (H, W, 3) uint8, stretched from the darkest to the brightest value.
        label: name of its class.
        predicted: name of the most probable class.
        probability: of that class.
        executed: number of units that were executed.
        fraction: MACs, routers included, over those of the static network.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    label: str
    predicted: str
    probability: float
    executed: int
    fraction: float


def pictures_of(
    network: DynamicNetwork, batches: Iterable[Batch], cost: CostModel, class_names: Sequence[str]
) -> list[Picture]:
    """Return the first images of batches with what a network says about them, the cheapest first.

    Args:
        network: in evaluation mode.
        batches: normalised images with labels, on its device.
        cost: its price list.
        class_names: in the order of the logits.
    """
    batch = next(iter(batches))
    images = batch.images[:MOST_PICTURES]
    with torch.inference_mode():
        output = network(images)
    best = output.probabilities.max(dim=1)
    executed, fractions = output.decisions.execution().sum(dim=1), cost.fraction(output.decisions)
    found = [
        Picture(
            pixels=_pixels(images[row]),
            label=class_names[int(batch.labels[row])],
            predicted=class_names[int(best.indices[row])],
            probability=float(best.values[row]),
            executed=round(float(executed[row])),
            fraction=float(fractions[row]),
        )
        for row in range(len(images))
    ]
    return sorted(found, key=lambda picture: picture.fraction)


def pictures_figure(pictures: Sequence[Picture]) -> Figure:
    """Return a figure of pictures, each under what the network says; what is wrong is red."""
    down = ceil(len(pictures) / _ACROSS)
    figure = Figure(figsize=(_WIDTH * _ACROSS, _HEIGHT * down))
    # Axes of their own for all of them would take longer to draw than many an epoch.
    axes = figure.add_axes((0, 0, 1, 1))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, _ACROSS)
        height, width = (_SIDE * side / max(picture.pixels.shape[:2]) for side in picture.pixels.shape[:2])
        middle, bottom = (column + 0.5) * _WIDTH, (down - row - 1) * _HEIGHT + _GAP
        extent = (middle - width / 2, middle + width / 2, bottom, bottom + height)
        axes.imshow(picture.pixels, extent=extent, aspect="auto")
        right = picture.predicted == picture.label
        said = picture.predicted if right else f"{picture.predicted}, not {picture.label}"
        shown = said.encode("utf-8", "replace").decode().replace("$", r"\$")
        title = f"{shown}\n{picture.probability:.0%}, {picture.fraction:.0%} of the MACs"
        color = "black" if right else "#b3262e"
        axes.text(middle, bottom + height + _GAP, title, fontsize=7, color=color, ha="center", va="bottom")
    axes.set(xlim=(0, _WIDTH * _ACROSS), ylim=(0, _HEIGHT * down))
    axes.set_axis_off()
    return figure


def _pixels(image: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = image.detach().float().cpu()
    low, high = values.min(), values.max()
    stretched = ((values - low) / (high - low).clamp_min(1e-6) * 255).round().to(torch.uint8)
    colours = stretched.expand(3, -1, -1) if len(stretched) == 1 else stretched[:3]
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = colours.permute(1, 2, 0).numpy()
    return pixels
