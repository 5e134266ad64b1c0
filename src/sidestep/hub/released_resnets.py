"""Names in the released codes that skip blocks: ConvNet-AIG, RDI-Net, CoDiNet, SkipNet and BlockDrop."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sidestep.hub.released_code import Found, ReleasedCode, State, counts, first_unit, renamed, resnet_name

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _convnet_aig(state: State) -> Found:
    blocks = counts(state, r"layer(\d+)\.(\d+)\.conv1\.weight")
    before = first_unit(blocks)

    def unit(match: re.Match[str]) -> int:
        return before[int(match[1]) - 1] + int(match[2])

    tensors = renamed(
        state,
        {
            r"layer(\d+)\.(\d+)\.fc1\.(.*)": lambda m: f"router.inner.{unit(m)}.0.{m[3]}",
            r"layer(\d+)\.(\d+)\.fc1bn\.(.*)": lambda m: f"router.inner.{unit(m)}.1.{m[3]}",
            r"layer(\d+)\.(\d+)\.fc2\.(.*)": lambda m: f"router.decide.{unit(m)}.{m[3]}",
            r"(layer\d+\.\d+)\.shortcut\.(.*)": r"backbone.\1.downsample.\2",
            r"linear\.(.*)": r"backbone.fc.\1",
            r"((conv1|bn1|layer\d+)\..*)": r"backbone.\1",
        },
    )
    name = resnet_name(blocks, bottleneck="layer1.0.conv3.weight" in state)
    small = name.startswith("cifar")
    # All gates decide, those too that the training of ResNet-50 and 101 wanted open.
    return Found(
        recipe="convnet_aig_resnet110_cifar10" if small else "convnet_aig_resnet50_imagenet",
        changes={
            "method": {"schedule": None, "target": 0.6},
            "model": {"name": name, **({"shortcut": "B"} if small else {})},
        },
        tensors=_flat(tensors),
        num_classes=len(state["linear.weight"]),
    )


def _rdi_net(state: State) -> Found:
    blocks = counts(state, r"layer(\d+)\.(\d+)\.block\.conv1\.weight")
    before = first_unit(blocks)

    def unit(match: re.Match[str]) -> int:
        return before[int(match[1]) - 1] + int(match[2])

    router = r"layer(\d+)\.(\d+)\.router"
    tensors = renamed(
        state,
        {
            rf"{router}\.layer0\.(.*)": lambda m: f"router.align.{unit(m)}.0.{m[3]}",
            rf"{router}\.laybn0\.(.*)": lambda m: f"router.align.{unit(m)}.1.{m[3]}",
            rf"{router}\.layer1\.(.*)": lambda m: f"router.narrow.{unit(m)}.{m[3]}",
            rf"{router}\.layer2\.(.*)": lambda m: f"router.decide.{unit(m)}.{m[3]}",
            rf"{router}\.gcn_layers\.weight": lambda m: f"router.gcn.{unit(m)}.weight",
            rf"{router}\.gcn_layers\.cfgs": "",  # weights of the edges, which are settings here
            r"(layer\d+\.\d+)\.block\.(.*)": r"backbone.\1.\2",
            r"linear\.(.*)": r"backbone.fc.\1",
            r"((conv1|bn1)\..*)": r"backbone.\1",
        },
    )
    gcn = {name: tensor.T for name, tensor in tensors.items() if name.startswith("router.gcn.")}
    edges = [round(edge, 6) for edge in state["layer1.0.router.gcn_layers.cfgs"][-1].tolist()]
    if edges != [round(edges[1] ** 2, 6), edges[1], 1]:
        raise ValueError(f"its edges {edges} are no powers of one number")
    name = resnet_name(blocks, bottleneck="layer1.0.block.conv3.weight" in state)
    if not name.startswith("cifar"):
        raise ValueError("networks for photographs run a half of a bottleneck there, which we have not")
    return Found(
        recipe="rdi_net_resnet110_cifar10",
        changes={
            "method": {
                "router": {"form": "released", "gamma": edges[1], "dim": len(next(iter(gcn.values())))}
            },
            "model": {"name": name, "options": 3},
        },
        tensors=tensors | gcn,
        num_classes=len(state["linear.weight"]),
    )


def _codinet(state: State) -> Found:
    blocks = counts(state, r"layer(\d+)\.(\d+)\.block\.conv1\.weight")
    before = first_unit(blocks)

    def unit(match: re.Match[str]) -> int:
        return before[int(match[1]) - 1] + int(match[2])

    tensors = renamed(
        state,
        {
            r"layer(\d+)\.(\d+)\.gate\.line0\.(.*)": lambda m: f"router.inner.{unit(m)}.0.{m[3]}",
            r"layer(\d+)\.(\d+)\.gate\.line1\.(.*)": lambda m: f"router.decide.{unit(m)}.{m[3]}",
            r"(layer\d+\.\d+)\.block\.shortcut\.(.*)": r"backbone.\1.downsample.\2",
            r"(layer\d+\.\d+)\.block\.(.*)": r"backbone.\1.\2",
            r"(layer\d+\.\d+)\.skip\.(.*)": r"backbone.\1.bypass.\2",
            r"linear\.(.*)": r"backbone.fc.\1",
            r"((conv1|bn1)\..*)": r"backbone.\1",
        },
    )
    # Its gates say executing first, and skipping behind it.
    flipped = {
        name: tensor.flip(0) if name.startswith("router.decide.") else tensor
        for name, tensor in tensors.items()
    }
    name = resnet_name(blocks, bottleneck="layer1.0.block.conv3.weight" in state)
    return Found(
        recipe="codinet_resnet110_cifar10",
        changes={
            "method": {"num_units": round(0.575 * sum(blocks), 1), "gate": {"activation": False}},
            "model": {"name": name, "skip": "own"},
            "data": {} if name.startswith("cifar") else {**_IMAGENET, "image_size": 224},
        },
        tensors=flipped,
        num_classes=len(state["linear.weight"]),
    )


def _skipnet(state: State) -> Found:
    blocks = counts(state, r"group(\d+)_layer(\d+)\.conv1\.weight")
    before, last = first_unit(blocks), sum(blocks) - 1
    recurrent = "control.rnn.weight_ih_l0" in state
    deep = "group1_gate0.conv2.weight" in state
    layers = {"conv1": 1, "bn1": 2, "conv2": 4, "bn2": 5} if deep else {"conv1": 0, "bn1": 1}

    def gate(match: re.Match[str]) -> str:
        """Return the name of a part of a gate, which decides about the next block; the last has none."""
        unit, part, rest = before[int(match[1]) - 1] + int(match[2]), match[3], match[4]
        if unit == last:
            return ""
        if recurrent:
            return f"router.embed.{unit}.{rest}"
        if part == "linear_layer":
            return f"router.decide.{unit}.{rest}"
        return f"router.features.{unit}.{layers[part]}.{rest}"

    tensors = renamed(
        state,
        {
            r"group(\d+)_gate(\d+)\.(\w+)\.(\w+)": gate,
            r"group\d+_ds\d+\..*": "",  # that of the block itself, once more
            r"group(\d+)_layer(\d+)\.(.*)": r"backbone.layer\1.\2.\3",
            r"control\.rnn\.(\w+)_l0": r"router.lstm.\1",
            r"control\.proj\.(\w+)": r"router.decide.\1",
            r"((conv1|bn1|fc)\..*)": r"backbone.\1",
        },
    )
    name = resnet_name(blocks, bottleneck="group1_layer0.conv3.weight" in state)
    small = name.startswith("cifar")
    kind = "recurrent" if recurrent else "feedforward1" if deep else "feedforward2"
    width = {"width": len(state["group1_gate0.1.weight"])} if recurrent else {}
    return Found(
        recipe="skipnet_resnet110_cifar10" if small else "skipnet_resnet101_imagenet",
        changes={"method": {"gate": kind, **width}, "model": {"name": name, "skip": "linear"}},
        tensors=_flat(tensors),
        num_classes=len(state["fc.weight"]),
    )


def _blockdrop(state: State) -> Found:
    """Return the network of the parts `resnet` and `agent`, which is called `net` in older files."""
    if not any(name.startswith("resnet.") for name in state):
        raise ValueError("it has a policy alone, without a part resnet; fine-tuned checkpoints have both")
    blocks = counts(state, r"resnet\.blocks\.(\d+)\.(\d+)\.conv1\.weight")
    policy = counts(state, r"(?:agent|net)\.features\.blocks\.(\d+)\.(\d+)\.conv1\.weight")

    def block(match: re.Match[str]) -> str:
        place = "backbone" if match[1] == "resnet" else "router.network"
        return f"{place}.layer{int(match[2]) + 1}.{match[3]}.{match[4]}"

    def shortcut(match: re.Match[str]) -> str:
        place = "backbone" if match[1] == "resnet" else "router.network"
        return f"{place}.layer{int(match[2]) + 1}.0.downsample.{match[3]}"

    tensors = renamed(
        state,
        {
            r"(resnet|(?:agent|net)\.features)\.blocks\.(\d+)\.(\d+)\.(.*)": block,
            r"(resnet|(?:agent|net)\.features)\.ds\.(\d+)\.(.*)": shortcut,
            r"resnet\.((?:conv1|bn1|fc)\..*)": r"backbone.\1",
            r"(?:agent|net)\.features\.((?:conv1|bn1)\..*)": r"router.network.\1",
            r"(?:agent|net)\.logit\.(.*)": r"router.network.fc.\1",
            r"(?:agent|net)\.(vnet|features\.fc)\..*": "",  # of training, and of old files
            r"(?!resnet|agent|net\.).*": "",
        },
    )
    name = resnet_name(blocks, bottleneck="resnet.blocks.0.0.conv3.weight" in state)
    num_classes = len(state["resnet.fc.weight"])
    if not name.startswith("cifar"):
        method, model, data = {"policy_depth": 10}, {"name": name}, {}
    else:
        method = {"policy_depth": 6 * policy[0] + 2}
        model, data = {"name": name, "shortcut": "pool_end"}, _blockdrop_pixels(name, num_classes)
    return Found(
        recipe="blockdrop_resnet110_cifar10" if data else "blockdrop_resnet101_imagenet",
        changes={"method": method, "model": model, "data": data},
        tensors=tensors,
        num_classes=num_classes,
    )


def _blockdrop_pixels(name: str, num_classes: int) -> dict[str, Any]:
    """Return the mean and deviation of its CIFAR networks: one alone has any."""
    if name == "cifar_resnet32" and num_classes == 10:
        mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
        return {"mean": [value / 255 for value in mean], "std": [value / 255 for value in std]}
    return {"mean": [0.0] * 3, "std": [1.0] * 3}


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the 1x1 convolutions of routers as the linear layers that they are."""
    return {
        name: tensor.flatten(1) if name.startswith("router.") and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in tensors.items()
    }


RESNET_CODES = [
    ReleasedCode(
        name="convnet_aig",
        title="andreasveit/convnet-aig",
        mark=re.compile(r"layer1\.0\.fc1\.weight$"),
        read=_convnet_aig,
    ),
    ReleasedCode(
        name="rdi_net",
        title="huanyuhello/RDI-Net",
        mark=re.compile(r"layer1\.0\.router\.gcn_layers\.weight$"),
        read=_rdi_net,
    ),
    ReleasedCode(
        name="codinet",
        title="huanyuhello/CoDiNet",
        mark=re.compile(r"layer1\.0\.gate\.line0\.weight$"),
        read=_codinet,
    ),
    ReleasedCode(
        name="skipnet",
        title="ucbdrive/skipnet",
        mark=re.compile(r"group1_gate0\.\w+\.weight$"),
        read=_skipnet,
    ),
    ReleasedCode(
        name="blockdrop",
        title="Tushar-N/blockdrop",
        mark=re.compile(r"(agent|net)\.features\.blocks\.0\.0\.conv1\.weight$"),
        read=_blockdrop,
    ),
]
