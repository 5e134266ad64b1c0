"""RANet and MSDNet from their state dicts and settings, layer by layer as specified, with functions only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def conv_basic(state: State, name: str, x: Tensor, *, stride: int = 1, index: int = 0) -> Tensor:
    """Return what leaves the convolution at place `index` of a sequence, BatchNorm and ReLU behind it."""
    weight = state[f"{name}.{index}.weight"]
    x = torch.conv2d(
        x, weight, state.get(f"{name}.{index}.bias"), stride=stride, padding=weight.shape[-1] // 2
    )
    mean, var, scale, shift = (
        state[f"{name}.{index + 1}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.relu(functional.batch_norm(x, mean, var, scale, shift))


def bottleneck(state: State, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    """Return a bottleneck's output, or that of a 3x3 convolution where there is no second one."""
    if f"{name}.3.weight" not in state:
        return conv_basic(state, name, x, stride=stride)
    return conv_basic(state, name, conv_basic(state, name, x), stride=stride, index=3)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def exit_head(state: State, name: str, x: Tensor) -> Tensor:
    """Return the logits of an exit over maps of 8x8 or 7x7, which two convolutions leave 2x2 pixels of."""
    x = conv_basic(state, f"{name}.conv1", x, stride=2)
    x = conv_basic(state, f"{name}.conv2", x, stride=2)
    x = functional.avg_pool2d(x, 2).flatten(1)
    return functional.linear(x, state[f"{name}.fc.weight"], state[f"{name}.fc.bias"])


def first_layers(state: State, kind: str, images: Tensor, strides: list[int]) -> list[Tensor]:
    """Return the maps of the first layer, the finest first."""
    if kind == "cifar":
        maps = [conv_basic(state, "first.0", images)]
    else:
        maps = [torch.max_pool2d(conv_basic(state, "first.0", images, stride=2), 3, stride=2, padding=1)]
    for index, stride in enumerate(strides, start=1):
        maps.append(conv_basic(state, f"first.{index}", maps[-1], stride=stride))
    return maps


def fusion_block(state: State, name: str, x: Tensor, lows: list[Tensor], *, halves: bool) -> list[Tensor]:
    """Return the input, what leaves every layer, and the block's output without its transition."""
    features, num_layers = [x], len(lows) - 1
    for q in range(num_layers):
        stride = 2 if halves and q == num_layers - 1 else 1
        own = bottleneck(state, f"{name}.layers.{q}.own", x, stride=stride)
        low = upsample(bottleneck(state, f"{name}.layers.{q}.low", lows[q]), own)
        x = torch.cat([upsample(x, own) if stride == 2 else x, low, own], dim=1)
        features.append(x)
    return [*features, torch.cat([x, upsample(conv_basic(state, f"{name}.low", lows[-1]), x)], dim=1)]


def dense_block(state: State, name: str, x: Tensor, num_layers: int) -> list[Tensor]:
    """Return the input, what leaves every layer, and the block's output without its transition."""
    features = [x]
    for q in range(num_layers):
        x = torch.cat([x, bottleneck(state, f"{name}.layers.{q}.own", x)], dim=1)
        features.append(x)
    return [*features, x]


def ranet(state: State, config: Any, images: Tensor) -> list[Tensor]:
    """Return the (B, C) logits of every exit."""
    scales = config.scale_list
    descending = range(len(scales) - 1, 0, -1)
    strides = [2 if scales[i] != scales[i - 1] else 1 for i in descending]
    inputs = first_layers(state, config.stem, images, strides)[::-1]
    logits: list[Tensor] = []
    sizes = [config.blocks + config.block_step * i for i in range(len(scales))]
    lows: list[list[Tensor]] = []
    for i, scale in enumerate(scales):
        x, features = inputs[i], []
        halving = [0, *sizes[:i]][::-1][: scale - 1]
        for j in range(1, sizes[i] + 1):
            name = f"networks.{i}.{j - 1}"
            if j <= len(lows):
                *kept, x = fusion_block(state, name, x, lows[j - 1], halves=j in halving)
            else:
                num_layers = config.step if config.stepmode == "even" else config.step * j
                *kept, x = dense_block(state, name, x, num_layers)
            features.append(kept)
            if j in [math.floor(m * sizes[i] / scale) for m in range(1, scale)]:
                x = conv_basic(state, f"{name}.transition", x)
            if j > len(lows):
                logits.append(exit_head(state, f"heads.{len(logits)}", x))
        lows = features
    return logits


def msdnet(state: State, config: Any, images: Tensor, *, lazy: bool) -> list[Tensor]:
    """Return the (B, C) logits of every exit.

    Args:
        state: of the network.
        config: its settings.
        images: (B, 3, H, W).
        lazy: whether to compute what an exit asks for, backwards from it, instead of all scales of a layer.
    """
    first = first_layers(state, config.stem, images, [2] * (config.num_scales - 1))
    features = msdnet_features(state, config, first)
    logits: list[Tensor] = []
    layer = 0
    for block in range(config.blocks):
        for _ in range(_block_layers(config, block)):
            layer += 1
            if not lazy:
                for scale in range(config.num_scales - live_scales(config, layer), config.num_scales):
                    features(layer, scale)
        logits.append(exit_head(state, f"heads.{block}", features(layer, config.num_scales - 1)))
    return logits


def msdnet_features(state: State, config: Any, first: list[Tensor]) -> Callable[[int, int], Tensor]:
    """Return the function that gives what leaves a layer (from 1) at a scale (from 0), computed once."""
    known: dict[tuple[int, int], Tensor] = {(0, scale): x for scale, x in enumerate(first)}

    def features(layer: int, scale: int) -> Tensor:
        if (layer, scale) in known:
            return known[layer, scale]
        x, name = features(layer - 1, scale), f"scales.{scale}.{layer - 1}"
        parts = [x]
        if scale - 1 >= config.num_scales - read_scales(config, layer):
            parts.append(bottleneck(state, f"{name}.down", features(layer - 1, scale - 1), stride=2))
        out = torch.cat([*parts, bottleneck(state, f"{name}.own", x)], dim=1)
        if _mixes(config, layer):
            out = conv_basic(state, f"{name}.transition", out)
        known[layer, scale] = out
        return out

    return features


def live_scales(config: Any, layer: int) -> int:
    """Return how many scales leave a layer, counted from 1."""
    layers = _all_layers(config)
    if config.prune == "min":
        return min(config.num_scales, layers - layer + 1)
    interval = math.ceil(layers / config.num_scales)
    return config.num_scales - math.floor((layer - 1) / interval)


def read_scales(config: Any, layer: int) -> int:
    """Return how many scales a layer reads: those that leave the layer before."""
    if config.prune == "min":
        return min(config.num_scales, _all_layers(config) - layer + 2)
    return live_scales(config, max(layer - 1, 1))


def _mixes(config: Any, layer: int) -> bool:
    if config.prune == "min":
        layers = _all_layers(config)
        return layer in (math.floor(layers / 3), math.floor(2 * layers / 3))
    return layer > 1 and live_scales(config, layer) < live_scales(config, layer - 1)


def _all_layers(config: Any) -> int:
    return sum(_block_layers(config, block) for block in range(config.blocks))


def _block_layers(config: Any, block: int) -> int:
    if block == 0:
        return config.base
    return config.step if config.stepmode == "even" else config.step * block + 1
