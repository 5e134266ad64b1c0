"""The released MSDNet and RANet from state dicts with the released names, with functions only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference.released import Made, State, conv, linear, norm


def make_msdnet(layers: list[list[int]], halved: list[int]) -> State:
    """Return an MSDNet of growth 4, factors 1 and 2, and 8 channels.

    Args:
        layers: scales of every layer, block by block.
        halved: places of layers, counted over all blocks, behind which a transition keeps half.
    """
    made, channels, number, before = Made(), 8, 0, 2
    for scale, (inputs, outputs) in enumerate([(3, 8), (8, 16)]):
        name = f"blocks.0.0.layers.{scale}.net"
        made.conv_norm((f"{name}.0", f"{name}.1"), inputs, outputs)
    for block, scales in enumerate(layers):
        place = int(block == 0)
        for live in scales:
            for index in range(live):
                scale, name = 2 - live + index, f"blocks.{block}.{place}.layers.{index}"
                has_finer = index > 0 or live < before
                made_bottleneck(
                    made,
                    f"{name}.conv_normal",
                    channels * 2**scale,
                    4 if has_finer else 4 * 2**scale,
                    scale + 1,
                )
                if has_finer:
                    made_bottleneck(made, f"{name}.conv_down", channels, 4, 1)
            channels, place, number, before = channels + 4, place + 1, number + 1, live
            if number in halved:
                for index in range(live):
                    factor, name = 2 ** (2 - live + index), f"blocks.{block}.{place}.m.{index}.net"
                    made.conv_norm((f"{name}.0", f"{name}.1"), channels * factor, channels // 2 * factor, 1)
                channels, place = channels // 2, place + 1
        make_head(made, f"classifier.{block}", channels * 2)
    return made.state


def made_bottleneck(made: Made, name: str, inputs: int, outputs: int, width: int) -> None:
    inner = min(inputs, width * outputs)
    made.conv_norm((f"{name}.net.0", f"{name}.net.1"), inputs, inner, 1)
    made.conv_norm((f"{name}.net.3", f"{name}.net.4"), inner, outputs)


def make_head(made: Made, name: str, inputs: int) -> None:
    made.conv_norm((f"{name}.m.0.net.0", f"{name}.m.0.net.1"), inputs, 128)
    made.conv_norm((f"{name}.m.1.net.0", f"{name}.m.1.net.1"), 128, 128)
    made.linear(f"{name}.linear", 128, 10)


def basic(state: State, name: str, x: Tensor, stride: int = 1, index: int = 0) -> Tensor:
    return torch.relu(norm(state, f"{name}.net.{index + 1}", conv(state, f"{name}.net.{index}", x, stride)))


def narrowed(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return basic(state, name, basic(state, name, x), stride, 3)


def head(state: State, name: str, x: Tensor) -> Tensor:
    x = basic(state, f"{name}.m.1", basic(state, f"{name}.m.0", x, 2), 2)
    return linear(state, f"{name}.linear", functional.avg_pool2d(x, 2).flatten(1))


def msdnet(state: State, images: Tensor, layers: list[list[int]], halved: list[int]) -> list[Tensor]:
    """Return the logits of all exits."""
    maps = [basic(state, "blocks.0.0.layers.0", images)]
    maps.append(basic(state, "blocks.0.0.layers.1", maps[0], 2))
    logits, number = [], 0
    for block, scales in enumerate(layers):
        place = int(block == 0)
        for live in scales:
            before = [None, *maps] if live == len(maps) else maps
            maps = [
                _msd_layer(state, f"blocks.{block}.{place}.layers.{index}", before[index], before[index + 1])
                for index in range(live)
            ]
            place, number = place + 1, number + 1
            if number in halved:
                maps = [basic(state, f"blocks.{block}.{place}.m.{index}", x) for index, x in enumerate(maps)]
                place += 1
        logits.append(head(state, f"classifier.{block}", maps[-1]))
    return logits


def _msd_layer(state: State, name: str, finer: Tensor | None, x: Tensor) -> Tensor:
    own = narrowed(state, f"{name}.conv_normal", x)
    return torch.cat(
        [x, own] if finer is None else [x, narrowed(state, f"{name}.conv_down", finer, 2), own], dim=1
    )


def make_ranet() -> State:
    """Return a RANet of two sub-networks with 2 and 4 blocks of 2 layers, growth 8 and 8 channels."""
    made = Made()
    for index, (inputs, outputs) in enumerate([(3, 8), (8, 16)]):
        made.conv_norm(
            (f"FirstLayer.layers.{index}.net.0", f"FirstLayer.layers.{index}.net.1"), inputs, outputs
        )
    lows: list[list[int]] = []
    exits = 0
    for network, factor in enumerate((2, 1)):
        channels, below, lows = 8 * factor, lows, []
        for block in range(2 + 2 * network):
            name, growth, inside = f"scale_flows.{network}.{block}", 8 * factor, [channels]
            fused = block < len(below)
            for layer in range(2):
                low = growth // 4 if fused else 0
                made_bottleneck(made, f"{name}.layers.{layer}.conv_normal", channels, growth - low, factor)
                if fused:
                    made_bottleneck(made, f"{name}.layers.{layer}.conv_up", below[block][layer], low, 2)
                channels += growth
                inside.append(channels)
            lows.append(inside)
            if fused:
                low = channels // 4
                made.conv_norm(
                    (f"{name}.conv_last.net.0", f"{name}.conv_last.net.1"), below[block][2], low, 1
                )
                channels += low
            if network == 1 and block == 1:
                made.conv_norm((f"{name}.trans.net.0", f"{name}.trans.net.1"), channels, channels // 2, 1)
                channels //= 2
            if not fused:
                make_head(made, f"classifier.{exits}", channels)
                exits += 1
    return made.state


def ranet(state: State, images: Tensor) -> list[Tensor]:
    """Return the logits of all exits of the network that `make_ranet` makes."""
    fine = basic(state, "FirstLayer.layers.0", images)
    inputs = [basic(state, "FirstLayer.layers.1", fine, 2), fine]
    logits: list[Tensor] = []
    below: list[list[Tensor]] = []
    for network, x in enumerate(inputs):
        features: list[list[Tensor]] = []
        for block in range(2 + 2 * network):
            name, inside = f"scale_flows.{network}.{block}", [x]
            fused = block < len(below)
            for layer in range(2):
                # The last layer of the last block before a transition to a lower resolution halves the map.
                stride = 2 if fused and block == 1 and layer == 1 else 1
                x = _ra_layer(
                    state, f"{name}.layers.{layer}", x, below[block][layer] if fused else None, stride
                )
                inside.append(x)
            features.append(inside)
            if fused:
                x = torch.cat([x, _resized(basic(state, f"{name}.conv_last", below[block][2]), x)], dim=1)
            if f"{name}.trans.net.0.weight" in state:
                x = basic(state, f"{name}.trans", x)
            if not fused:
                logits.append(head(state, f"classifier.{len(logits)}", x))
        below = features
    return logits


def _ra_layer(state: State, name: str, x: Tensor, low: Tensor | None, stride: int) -> Tensor:
    own = narrowed(state, f"{name}.conv_normal", x, stride)
    if low is None:
        return torch.cat([x, own], dim=1)
    return torch.cat([_resized(x, own), _resized(narrowed(state, f"{name}.conv_up", low), own), own], dim=1)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)
