"""ACT and SACT as the papers print them: one image, one position, one unit at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Slope below zero and epsilon behind the BatchNorms of halting units: leaky ReLU, and nothing.
Norm = tuple[float, float]
CIFAR: Norm = (0.1, 1e-3)
IMAGENET: Norm = (1.0, 1e-5)


def halting(scores: list[Tensor], eps: float) -> tuple[int, Tensor, list[Tensor]]:
    """Return N, R and p_1 to p_L for the scores of all units but the last."""
    scores = [*scores, torch.tensor(1.0)]
    num_units = 1
    while float(sum(s.detach() for s in scores[:num_units])) < 1 - eps:
        num_units += 1
    remainder = torch.tensor(1.0)
    for score in scores[: num_units - 1]:
        remainder = remainder - score
    zeros = [torch.tensor(0.0)] * (len(scores) - num_units)
    return num_units, remainder, [*scores[: num_units - 1], remainder, *zeros]


def act_score(state: dict[str, Tensor], x: Tensor, norm: Norm = CIFAR) -> Tensor:
    """Return the score of one (C, H, W) map in evaluation mode."""
    pooled = _activated(state, "norm", x.mean(dim=(1, 2)), norm)
    return torch.sigmoid(state["score.weight"][0] @ pooled + state["score.bias"][0])


def sact_score(state: dict[str, Tensor], x: Tensor, row: int, column: int, norm: Norm = CIFAR) -> Tensor:
    """Return the score of one position of one (C, H, W) map in evaluation mode."""
    padded = functional.pad(_activated(state, "local_norm", x, norm), (1, 1, 1, 1))
    window = padded[:, row : row + 3, column : column + 3]
    local = (state["local_score.weight"][0] * window).sum() + state["local_score.bias"][0]
    pooled = _activated(state, "global_norm", x.mean(dim=(1, 2)), norm)
    return torch.sigmoid(local + state["global_score.weight"][0] @ pooled)


def act_image(network: Any, image: Tensor, norm: Norm = CIFAR) -> dict[str, Any]:
    """Return logits, executed units and ponder costs of one (3, H, W) image under ACT."""
    x = network.backbone.stem(image.unsqueeze(0))
    executed: list[float] = []
    ponder: list[Tensor] = []
    for first, units in _stages(network):
        outputs, scores = [x], []
        for offset, unit in enumerate(units):
            outputs.append(unit.execute(outputs[-1]))
            if offset < len(units) - 1:
                state = network.router.halting[str(first + offset + 1)].state_dict(keep_vars=True)
                scores.append(act_score(state, outputs[-1][0], norm))
        num_units, remainder, weights = halting(scores, network.router.eps)
        x = sum(p * out for p, out in zip(weights, outputs[1:], strict=True))  # type: ignore[assignment]
        executed += [float(offset < num_units) for offset in range(len(units))]
        ponder.append(num_units + remainder)
    return {"logits": network.backbone.head(x)[0], "executed": executed, "ponder": torch.stack(ponder)}


def sact_image(network: Any, image: Tensor, norm: Norm = CIFAR) -> dict[str, Any]:
    """Return the same under SACT, with the shares of positions that every unit's convolutions need."""
    x = network.backbone.stem(image.unsqueeze(0))
    ponder: list[Tensor] = []
    positions: list[dict[str, float]] = []
    for first, units in _stages(network):
        outputs: list[Tensor] = []
        scores: dict[tuple[int, int], list[Tensor]] = {}
        for offset, unit in enumerate(units):
            new = unit.execute(outputs[-1] if outputs else x)
            height, width = new.shape[2:]
            places = [(row, column) for row in range(height) for column in range(width)]
            if not outputs:
                scores = {place: [] for place in places}
            runs = [place for place in places if not _halted(scores[place], network.router.eps)]
            if outputs:
                frozen = outputs[-1].clone()
                for row, column in runs:
                    frozen[0, :, row, column] = new[0, :, row, column]
                new = frozen
            outputs.append(new)
            positions.append(_needed(runs, height, width))
            if offset < len(units) - 1:
                state = network.router.halting[str(first + offset + 1)].state_dict(keep_vars=True)
                for place in places:
                    scores[place].append(sact_score(state, new[0], *place, norm))
        x = torch.zeros_like(outputs[-1])
        costs = []
        for place, of_place in scores.items():
            num_units, remainder, weights = halting(of_place, network.router.eps)
            costs.append(num_units + remainder)
            mean = sum(p * out[0, :, place[0], place[1]] for p, out in zip(weights, outputs, strict=True))
            x = x.index_put((torch.tensor(0), torch.arange(x.shape[1]), *map(torch.tensor, place)), mean)
        ponder.append(torch.stack(costs).mean())
    return {"logits": network.backbone.head(x)[0], "positions": positions, "ponder": torch.stack(ponder)}


def _halted(scores: list[Tensor], eps: float) -> bool:
    """Tell whether the scores so far add up to 1 - eps."""
    return float(sum(score.detach() for score in scores)) >= 1 - eps


def _needed(runs: list[tuple[int, int]], height: int, width: int) -> dict[str, float]:
    """Return the shares of positions for which conv1 is computed, and for which conv2 and any behind it are.

    The 3x3 conv2 looks one position around itself, whatever conv1 is.
    """
    around = {
        (row + down, column + right) for row, column in runs for down in (-1, 0, 1) for right in (-1, 0, 1)
    }
    inside = [place for place in around if 0 <= place[0] < height and 0 <= place[1] < width]
    return {"conv1": len(inside) / (height * width), "conv2": len(runs) / (height * width)}


def _stages(network: Any) -> list[tuple[int, list[Any]]]:
    """Return index of the first unit, and the units, of every stage."""
    units = list(network.backbone.units)
    stages: list[tuple[int, list[Any]]] = []
    for index, unit in enumerate(units):
        if not stages or stages[-1][1][-1].stage != unit.stage:
            stages.append((index, []))
        stages[-1][1].append(unit)
    return stages


def _activated(state: dict[str, Tensor], name: str, x: Tensor, norm: Norm) -> Tensor:
    leak, eps = norm
    shape = [-1] + [1] * (x.dim() - 1)
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(shape) for key in ("running_mean", "running_var", "weight", "bias")
    )
    normed = (x - mean) / torch.sqrt(var + eps) * weight + bias
    return torch.where(normed > 0, normed, leak * normed)
