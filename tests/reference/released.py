"""The papers' released networks from state dicts with the released names, with functions only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


@dataclass
class Made:
    """A state dict in the making, with random weights that keep features of about one size."""

    state: State = field(default_factory=dict)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = False) -> None:
        deviation = math.sqrt(2 / (inputs * kernel * kernel))
        self.state[f"{name}.weight"] = deviation * torch.randn(outputs, inputs, kernel, kernel)
        if bias:
            self.state[f"{name}.bias"] = 0.1 * torch.randn(outputs)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.state[f"{name}.weight"] = torch.randn(outputs, inputs) / math.sqrt(inputs)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(outputs)

    def norm(self, name: str, channels: int) -> None:
        self.state |= {
            f"{name}.weight": 1 + 0.2 * torch.rand(channels),
            f"{name}.bias": 0.2 * torch.randn(channels),
            f"{name}.running_mean": 0.2 * torch.randn(channels),
            f"{name}.running_var": 0.8 + 0.4 * torch.rand(channels),
        }

    def conv_norm(self, names: tuple[str, str], inputs: int, outputs: int, kernel: int = 3) -> None:
        self.conv(names[0], inputs, outputs, kernel)
        self.norm(names[1], outputs)

    def block(self, name: str, inputs: int, outputs: int) -> None:
        self.conv_norm((f"{name}.conv1", f"{name}.bn1"), inputs, outputs)
        self.conv_norm((f"{name}.conv2", f"{name}.bn2"), outputs, outputs)


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    bias = state.get(f"{name}.bias")
    return torch.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (
        state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(x, mean, var, scale, shift)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, state[f"{name}.weight"].flatten(1), state[f"{name}.bias"])


def branch(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    x = torch.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)))
    return norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x))


def pooled(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def stem(state: State, images: Tensor, prefix: str = "") -> Tensor:
    return torch.relu(norm(state, f"{prefix}bn1", conv(state, f"{prefix}conv1", images)))


def chosen(execute: Tensor, run: Tensor, skip: Tensor) -> Tensor:
    return torch.where(execute.view(-1, 1, 1, 1), run, skip)


def places(depth: int) -> list[tuple[int, int, int, int, int]]:
    """Return stage, place in it, input and output channels and stride of every block."""
    return [
        (stage, i, 16 * 2 ** (stage - (stage > 0 and i == 0)), 16 * 2**stage, 1 + (stage > 0 and i == 0))
        for stage in range(3)
        for i in range(depth)
    ]


def subsampled(x: Tensor, outputs: int) -> Tensor:
    """Return the shortcut A: every second pixel, and zeros for half of the channels, around the others."""
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, outputs // 4, outputs // 4))


def make_convnet_aig(depth: int, classes: int = 10) -> State:
    made = Made()
    made.conv_norm(("conv1", "bn1"), 3, 16)
    for stage, i, inputs, outputs, stride in places(depth):
        name = f"layer{stage + 1}.{i}"
        made.block(name, inputs, outputs)
        if stride > 1:
            made.conv_norm((f"{name}.shortcut.0", f"{name}.shortcut.1"), inputs, outputs, 1)
        made.conv(f"{name}.fc1", inputs, 16, 1, bias=True)
        made.norm(f"{name}.fc1bn", 16)
        made.conv(f"{name}.fc2", 16, 2, 1, bias=True)
    made.linear("linear", 64, classes)
    return made.state


def convnet_aig(state: State, images: Tensor, depth: int) -> Tensor:
    x = stem(state, images)
    for stage, i, _, _, stride in places(depth):
        name = f"layer{stage + 1}.{i}"
        hidden = torch.relu(norm(state, f"{name}.fc1bn", linear(state, f"{name}.fc1", pooled(x))))
        gate = linear(state, f"{name}.fc2", hidden).argmax(1).view(-1, 1, 1, 1)
        base = x
        if stride > 1:
            base = norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", x, stride))
        x = torch.relu(base + gate * branch(state, name, x, stride))
    return linear(state, "linear", pooled(x))


def make_codinet(depth: int) -> State:
    made = Made()
    made.conv_norm(("conv1", "bn1"), 3, 16)
    for stage, i, inputs, outputs, stride in places(depth):
        name = f"layer{stage + 1}.{i}"
        made.block(f"{name}.block", inputs, outputs)
        made.linear(f"{name}.gate.line0", inputs, inputs)
        made.linear(f"{name}.gate.line1", inputs, 2)
        if stride > 1:
            made.conv_norm((f"{name}.skip.0", f"{name}.skip.1"), inputs, outputs, 1)
    made.linear("linear", 64, 10)
    return made.state


def codinet(state: State, images: Tensor, depth: int) -> Tensor:
    x = stem(state, images)
    for stage, i, _, outputs, stride in places(depth):
        name = f"layer{stage + 1}.{i}"
        gate = linear(state, f"{name}.gate.line1", linear(state, f"{name}.gate.line0", pooled(x)))
        base = x if stride == 1 else subsampled(x, outputs)
        run, skip = torch.relu(base + branch(state, f"{name}.block", x, stride)), x
        if stride > 1:
            skip = torch.relu(norm(state, f"{name}.skip.1", conv(state, f"{name}.skip.0", x, stride)))
        x = chosen(gate[:, 0] > gate[:, 1], run, skip)
    return linear(state, "linear", pooled(x))


def make_skipnet(depth: int, kind: str) -> State:
    made = Made()
    made.conv_norm(("conv1", "bn1"), 3, 16)
    for stage, i, inputs, outputs, stride in places(depth):
        name, gate = f"group{stage + 1}_layer{i}", f"group{stage + 1}_gate{i}"
        made.block(name, inputs, outputs)
        if stride > 1:
            made.conv_norm((f"{name}.downsample.0", f"{name}.downsample.1"), inputs, outputs, 1)
            for key in [key for key in made.state if key.startswith(f"{name}.downsample.")]:
                made.state[f"group{stage + 1}_ds{i}." + key.partition(".downsample.")[2]] = made.state[key]
        if kind == "recurrent":
            made.conv(f"{gate}.1", outputs, 10, 1, bias=True)
            continue
        made.conv_norm((f"{gate}.conv1", f"{gate}.bn1"), outputs, outputs)
        if kind == "feedforward1":
            made.conv_norm((f"{gate}.conv2", f"{gate}.bn2"), outputs, outputs)
        made.conv(f"{gate}.linear_layer", outputs, 2, 1, bias=True)
    if kind == "recurrent":
        for key in ("ih", "hh"):
            made.state[f"control.rnn.weight_{key}_l0"] = torch.randn(40, 10)
            made.state[f"control.rnn.bias_{key}_l0"] = torch.randn(40)
        made.conv("control.proj", 10, 1, 1, bias=True)
    made.linear("fc", 64, 10)
    return made.state


def skipnet(state: State, images: Tensor, depth: int, kind: str) -> Tensor:
    x, memory, execute = stem(state, images), (torch.zeros(len(images), 10),) * 2, None
    for stage, i, _, _, stride in places(depth):
        name, gate = f"group{stage + 1}_layer{i}", f"group{stage + 1}_gate{i}"
        base = x
        if stride > 1:
            base = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride))
        run = torch.relu(base + branch(state, name, x, stride))
        x = run if execute is None else chosen(execute, run, base)
        if kind == "recurrent":
            embedded = linear(state, f"{gate}.1", pooled(x))
            memory = _lstm(state, embedded, memory)
            execute = linear(state, "control.proj", memory[0])[:, 0].sigmoid() > 0.5
        else:
            logits = linear(state, f"{gate}.linear_layer", pooled(_gate_features(state, gate, x, kind)))
            execute = logits.softmax(1)[:, 1] > 0.5
    return linear(state, "fc", pooled(x))


def _gate_features(state: State, gate: str, x: Tensor, kind: str) -> Tensor:
    if kind == "feedforward2":
        return torch.relu(norm(state, f"{gate}.bn1", conv(state, f"{gate}.conv1", x, 2)))
    x = torch.relu(norm(state, f"{gate}.bn1", conv(state, f"{gate}.conv1", torch.max_pool2d(x, 2))))
    return torch.relu(norm(state, f"{gate}.bn2", conv(state, f"{gate}.conv2", x, 2)))


def _lstm(state: State, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    hidden, cell = memory
    sums = [
        functional.linear(each, state[f"control.rnn.weight_{key}_l0"], state[f"control.rnn.bias_{key}_l0"])
        for key, each in (("ih", x), ("hh", hidden))
    ]
    let_in, forget, new, let_out = (sums[0] + sums[1]).chunk(4, dim=1)
    cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
    return let_out.sigmoid() * cell.tanh(), cell


def make_blockdrop(depth: int) -> State:
    made = Made()
    for prefix, number in (("resnet.", depth), ("agent.features.", 1)):
        made.conv_norm((f"{prefix}conv1", f"{prefix}bn1"), 3, 16)
        for stage, i, inputs, outputs, _ in places(number):
            made.block(f"{prefix}blocks.{stage}.{i}", inputs, outputs)
    made.linear("resnet.fc", 64, 10)
    made.linear("agent.logit", 64, 3 * depth)
    made.linear("agent.vnet", 64, 1)
    return made.state


def blockdrop(state: State, images: Tensor, depth: int) -> Tensor:
    everything = torch.ones(len(images), 3, dtype=torch.bool)
    policy = linear(
        state, "agent.logit", pooled(_flat_resnet(state, images, 1, "agent.features.", everything))
    )
    return linear(state, "resnet.fc", pooled(_flat_resnet(state, images, depth, "resnet.", policy > 0)))


def _flat_resnet(state: State, images: Tensor, depth: int, prefix: str, policy: Tensor) -> Tensor:
    x = stem(state, images, prefix)
    for unit, (stage, i, _, _, stride) in enumerate(places(depth)):
        base = x
        if stride > 1:
            halved = functional.avg_pool2d(x, 2)
            base = torch.cat([halved, torch.zeros_like(halved)], dim=1)
        run = torch.relu(base + branch(state, f"{prefix}blocks.{stage}.{i}", x, stride))
        x = chosen(policy[:, unit], run, base)
    return x


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
