"""How residual blocks are run in training, with passes that are written by hand or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.execution.execution import RunUnit, blend
from sidestep.fused.by_hand import blend_outputs, mean_over_space
from sidestep.fused.companions import companions_of
from sidestep.fused.norms import norm_add_relu, norm_blend, norm_relu
from sidestep.layers.pool import spatial_mean
from sidestep.layers.residual import BasicBlock, Bottleneck
from sidestep.layers.unit import Unit

Block = BasicBlock | Bottleneck


def cheap_mean(maps: Tensor) -> Tensor:
    """Return the (B, C) means of (B, C, H, W) maps: those that came with the maps, or by hand."""
    if torch.compiler.is_compiling():
        return spatial_mean(maps)
    companions = companions_of(maps)
    return mean_over_space(maps) if companions is None else companions.means


def run_by_hand(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
    """Return what `blend` does; blocks in `_TO_LAST_NORM` have the blend by hand."""
    if type(unit) not in _TO_LAST_NORM:
        return blend(unit, x, weights)
    block: Any = unit
    return _blended(block, block.branch(x), x, weights)


def run_compiled(unit: Unit, x: Tensor, weights: Tensor, *, otherwise: RunUnit) -> Tensor:
    """Return what `blend` does; blocks in `_TO_LAST_NORM` have compiled passes around torch's convolutions.

    Args:
        unit: what is run, in training.
        x: (B, C, H, W) features on a CPU.
        weights: (B, K) weights of the options.
        otherwise: how other units are run.
    """
    if type(unit) not in _TO_LAST_NORM:
        return otherwise(unit, x, weights)
    block: Any = unit
    last, norm = _TO_LAST_NORM[type(unit)](block, x)
    if _blends_outputs(block) and block.se is None:
        return norm_blend(norm, last, block.shortcut(x), weights[:, 1])
    branch = norm(last)
    return _blended(block, branch if block.se is None else block.se(branch), x, weights)


def execute_compiled(unit: Unit, x: Tensor) -> Tensor:
    """Return the output of an executed unit that has compiled passes, in training on a CPU.

    Args:
        unit: what is run.
        x: (B, C, H, W) features.
    """
    block: Any = unit
    last, norm = _TO_LAST_NORM[type(unit)](block, x)
    if block.se is None:
        return norm_add_relu(norm, last, block.shortcut(x))
    return F.relu(block.se(norm(last)) + block.shortcut(x), inplace=True)


def has_compiled_passes(unit: Unit) -> bool:
    """Return whether `run_compiled` has passes of its own for a unit."""
    return type(unit) in _TO_LAST_NORM


def _basic(block: BasicBlock, x: Tensor) -> tuple[Tensor, nn.Module]:
    return block.conv2(norm_relu(block.bn1, block.conv1(x))), block.bn2


def _bottleneck(block: Bottleneck, x: Tensor) -> tuple[Tensor, nn.Module]:
    inner = norm_relu(block.bn1, block.conv1(x))
    return block.conv3(norm_relu(block.bn2, block.conv2(inner))), block.bn3


# The branch of a block in front of its last BatchNorm, and that BatchNorm. No subclass: it may run otherwise.
_TO_LAST_NORM: dict[type[Unit], Callable[[Any, Tensor], tuple[Tensor, nn.Module]]] = {
    BasicBlock: _basic,
    Bottleneck: _bottleneck,
}


def _blended(block: Block, branch: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """Return the block's output, given its branch."""
    if _blends_outputs(block):
        return blend_outputs(branch, block.shortcut(x), weights[:, 1])
    return block.blended(branch, x, weights[:, 1])


def _blends_outputs(block: Block) -> bool:
    """Return whether a block's output is v * relu(S + B) + (1 - v) * S."""
    return block.mix == "output" and not block.rectifies and block.bypass is None
