"""Names and settings in the released codes of networks with exits: MSDNet-PyTorch and RANet-pytorch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from torch import Tensor

from sidestep.hub.released_code import Found, ReleasedCode, State, renamed

_HEADS = {
    r"classifier\.(\d+)\.m\.0\.net\.(.*)": r"heads.\1.conv1.\2",
    r"classifier\.(\d+)\.m\.1\.net\.(.*)": r"heads.\1.conv2.\2",
    r"classifier\.(\d+)\.linear\.(.*)": r"heads.\1.fc.\2",
}
_MSD_FIRST, _RA_FIRST = r"blocks\.0\.0\.layers", r"FirstLayer\.layers"


def _msdnet(state: State) -> Found:
    widths = _first_widths(state, _MSD_FIRST)
    # The place of every layer in the released blocks, which also hold transitions, and its number of scales.
    layers = _numbers(state, r"blocks\.(\d+)\.(\d+)\.layers\.0\.conv_normal\.")
    live = [
        len(_numbers(state, rf"blocks\.{block}\.{place}\.layers\.(\d+)\.conv_")) for block, place in layers
    ]
    index = {place: number for number, place in enumerate(layers)}

    def layer(match: re.Match[str]) -> str:
        number = index[int(match[1]), int(match[2])]
        scale = len(widths) - live[number] + int(match[3])
        return f"scales.{scale}.{number}.{'own' if match[4] == 'normal' else 'down'}.{match[5]}"

    def transition(match: re.Match[str]) -> str:
        number = index[int(match[1]), int(match[2]) - 1]
        return f"scales.{len(widths) - live[number] + int(match[3])}.{number}.transition.{match[4]}"

    tensors = renamed(
        state,
        {
            **_first(_MSD_FIRST),
            r"blocks\.(\d+)\.(\d+)\.layers\.(\d+)\.conv_(normal|down)\.net\.(.*)": layer,
            r"blocks\.(\d+)\.(\d+)\.m\.(\d+)\.net\.(.*)": transition,
            **_HEADS,
        },
    )
    blocks = sorted({block for block, _ in layers})
    steps = [sum(block == each for each, _ in layers) for block in blocks]
    photos = _is_for_photos(state, _MSD_FIRST)
    return Found(
        recipe="msdnet_imagenet" if photos else "msdnet_cifar10",
        changes={"model": _msdnet_settings(tensors, widths, steps, live)},
        tensors=tensors,
        num_classes=len(state["classifier.0.linear.weight"]),
        unbuilt=re.compile(r"scales\.\d+\.\d+\..*"),
    )


def _msdnet_settings(
    tensors: Mapping[str, Tensor], widths: Sequence[int], steps: Sequence[int], live: Sequence[int]
) -> dict[str, Any]:
    num_scales, interval = len(widths), ceil(sum(steps) / len(widths))
    even = len(set(steps[1:])) <= 1
    factors = [width // widths[0] for width in widths]
    bottlenecks = "scales.0.0.own.3.weight" in tensors
    inner = [
        _width(tensors, rf"scales\.{scale}\.\d+\.own", rf"scales\.{scale + 1}\.\d+\.down")
        for scale in range(num_scales)
    ]
    return {
        "num_scales": num_scales,
        "blocks": len(steps),
        "base": steps[0],
        "step": 1 if len(steps) == 1 else steps[1] - (not even),
        "stepmode": "even" if even else "lin_grow",
        "prune": "max" if live == [num_scales - number // interval for number in range(len(live))] else "min",
        "channels": widths[0],
        "growth": len(tensors["scales.0.0.own.3.weight" if bottlenecks else "scales.0.0.own.0.weight"]),
        "gr_factor": factors,
        "bn_factor": inner if bottlenecks else None,
        "reduction": _share(tensors, r"scales\.\d+\.\d+\.transition\.0\.weight"),
    }


def _ranet(state: State) -> Found:
    flow = r"scale_flows\.(\d+)\.(\d+)"
    widths = _first_widths(state, _RA_FIRST)[::-1]  # the finest map is the first one in its names
    tensors = renamed(
        state,
        {
            **_first(_RA_FIRST),
            rf"{flow}\.layers\.(\d+)\.conv_normal\.net\.(.*)": r"networks.\1.\2.layers.\3.own.\4",
            rf"{flow}\.layers\.(\d+)\.conv_up\.net\.(.*)": r"networks.\1.\2.layers.\3.low.\4",
            rf"{flow}\.conv_last\.net\.(.*)": r"networks.\1.\2.low.\3",
            rf"{flow}\.trans\.net\.(.*)": r"networks.\1.\2.transition.\3",
            **_HEADS,
        },
    )
    photos = _is_for_photos(state, _RA_FIRST)
    return Found(
        recipe="ranet_imagenet" if photos else "ranet_cifar10",
        changes={"model": _ranet_settings(tensors, widths)},
        tensors=tensors,
        num_classes=len(state["classifier.0.linear.weight"]),
    )


def _ranet_settings(tensors: Mapping[str, Tensor], widths: Sequence[int]) -> dict[str, Any]:
    networks = range(len(widths))
    blocks = [len(_numbers(tensors, rf"networks\.{network}\.(\d+)\.")) for network in networks]
    layers = [len(_numbers(tensors, rf"networks\.0\.{block}\.layers\.(\d+)\.")) for block in range(blocks[0])]
    factors = [width // min(widths) for width in widths]
    growth = len(tensors["networks.0.0.layers.0.own.3.weight"]) // factors[0]
    fused = [len(tensors[f"networks.{each}.0.layers.0.low.3.weight"]) for each in networks[1:]]
    shares = [taken / (growth * factor) for taken, factor in zip(fused, factors[1:], strict=True)]
    halvings = [len(_numbers(tensors, rf"networks\.{each}\.(\d+)\.transition\.")) for each in networks]
    return {
        "scale_list": [count + 1 for count in halvings],
        "blocks": blocks[0],
        "block_step": blocks[1] - blocks[0] if len(blocks) > 1 else 1,
        "step": layers[0],
        "stepmode": "even" if len(set(layers)) == 1 else "lg",
        "channels": min(widths),
        "growth": growth,
        "gr_factor": factors,
        "bn_factor": [
            _width(
                tensors,
                rf"networks\.{each}\.\d+\.layers\.\d+\.own",
                rf"networks\.{each + 1}\.\d+\.layers\.\d+\.low",
            )
            for each in networks
        ],
        "reduction": _share(tensors, r"networks\.\d+\.\d+\.transition\.0\.weight"),
        # Rounded down in every network, so that the largest is the nearest.
        "compress": _round_share(max(shares)) if shares else 0.25,
    }


def _first(place: str) -> dict[str, str]:
    """Return the rules for the first layers, of which the first one is a sequence itself for photographs."""
    return {rf"{place}\.(\d+)\.net\.(.*)": r"first.\1.\2", rf"{place}\.(\d+)\.(\d+\..*)": r"first.\1.\2"}


def _first_widths(state: State, place: str) -> list[int]:
    found = {
        int(match[1]): len(tensor)
        for name, tensor in state.items()
        if (match := re.fullmatch(rf"{place}\.(\d+)\.(?:net\.)?0\.weight", name))
    }
    return [found[index] for index in range(len(found))]


def _is_for_photos(state: State, place: str) -> bool:
    return any(re.fullmatch(rf"{place}\.0\.0\.weight", name) for name in state)


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[Any]:
    """Return the numbers that a pattern finds in names, each once, in order; of several groups tuples."""
    found = {tuple(map(int, match.groups())) for name in state if (match := re.match(pattern, name))}
    return [each if len(each) > 1 else each[0] for each in sorted(found)]


def _width(tensors: Mapping[str, Tensor], *places: str) -> int:
    """Return the width of bottlenecks as a multiple of what they append.

    That is where they are narrower than their input; one that never is can have any larger width.
    """
    pairs = [
        (tensor.shape, len(tensors[name.removesuffix("0.weight") + "3.weight"]))
        for name, tensor in tensors.items()
        for place in places
        if re.fullmatch(rf"{place}\.0\.weight", name)
        and name.removesuffix("0.weight") + "3.weight" in tensors
    ]
    narrow = [shape[0] // appended for shape, appended in pairs if shape[0] < shape[1]]
    return narrow[0] if narrow else max([ceil(shape[0] / appended) for shape, appended in pairs], default=1)


def _share(tensors: Mapping[str, Tensor], pattern: str) -> float:
    """Return the share of the channels that transitions keep, 0.5 without any."""
    shapes = [tensor.shape for name, tensor in tensors.items() if re.fullmatch(pattern, name)]
    return _round_share(max(shape[0] / shape[1] for shape in shapes)) if shapes else 0.5


def _round_share(value: float) -> float:
    """Return the share that was meant: numbers of channels are rounded down."""
    return next((share for share in (0.25, 0.5, 0.75) if abs(value - share) < 0.02), value)


DENSE_CODES = [
    ReleasedCode(
        name="msdnet",
        title="kalviny/MSDNet-PyTorch",
        mark=re.compile(r"blocks\.0\.1\.layers\.0\.conv_normal\.net\.0\.weight$"),
        read=_msdnet,
    ),
    ReleasedCode(
        name="ranet",
        title="yangle15/RANet-pytorch",
        mark=re.compile(r"scale_flows\.0\.0\.layers\.0\.conv_normal\.net\.0\.weight$"),
        read=_ranet,
    ),
]
