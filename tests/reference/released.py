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


def make_rdi_net(depth: int) -> State:
    made = Made()
    made.conv_norm(("conv1", "bn1"), 3, 16)
    for stage, i, inputs, outputs, _ in places(depth):
        name = f"layer{stage + 1}.{i}"
        made.block(f"{name}.block", inputs, outputs)
        made.linear(f"{name}.router.layer0", inputs, inputs)
        made.norm(f"{name}.router.laybn0", inputs)
        made.linear(f"{name}.router.layer1", inputs, 3)
        made.state[f"{name}.router.gcn_layers.weight"] = torch.randn(3, 20)
        made.state[f"{name}.router.gcn_layers.cfgs"] = torch.tensor(
            [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]
        )
        made.linear(f"{name}.router.layer2", 20, 3)
    made.linear("linear", 64, 10)
    return made.state


def rdi_net(state: State, images: Tensor, depth: int) -> Tensor:
    x = stem(state, images)
    said: list[Tensor] = []
    for stage, i, _, outputs, stride in places(depth):
        name = f"layer{stage + 1}.{i}"
        router, block = f"{name}.router", f"{name}.block"
        own = torch.relu(norm(state, f"{router}.laybn0", linear(state, f"{router}.layer0", pooled(x))))
        own = linear(state, f"{router}.layer1", own)
        before, before_that = (said[-1], said[max(-2, -len(said))]) if said else (own, own)
        stacked = torch.stack([before_that, before, own], dim=1) @ state[f"{router}.gcn_layers.weight"]
        related = (state[f"{router}.gcn_layers.cfgs"][2].view(1, 3, 1) * stacked).sum(dim=1)
        said.append(linear(state, f"{router}.layer2", related).softmax(1))
        base = x if stride == 1 else subsampled(x, outputs)
        half = torch.relu(norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x, stride)))
        options = [base, torch.relu(base + half), torch.relu(base + branch(state, block, x, stride))]
        choice = said[-1].argmax(1)
        x = torch.stack([options[int(choice[image])][image] for image in range(len(x))])
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
