"""Plans made for tests, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sidestep_engine import Plan


class Maker:
    """Collects steps and weights; values are numbered as they are made."""

    def __init__(self, seed: int = 0, channels: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.channels = channels
        self.steps: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.last = 0
        self.ops: list[Any] | None = None

    def value(self) -> int:
        self.last += 1
        return self.last

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) or 1
        name = f"w{len(self.tensors)}"
        spread = (2 / fan) ** 0.5 if scale is None else scale
        self.tensors[name] = (self.random.standard_normal(shape) * spread).astype(np.float32)
        return name

    def op(self, kind: str, **fields: Any) -> int:
        out = self.value()
        op = {"op": kind, "out": out, **fields}
        if self.ops is not None:
            self.ops.append(op)
        elif self.steps and "ops" in self.steps[-1]:
            self.steps[-1]["ops"].append(op)
        else:
            self.steps.append({"ops": [op]})
        return out

    def conv(self, x: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **fields: Any) -> int:
        groups = fields.setdefault("groups", 1)
        fields.setdefault("padding", kernel // 2)
        fields.setdefault("relu", True)
        weight = self.weight(outputs, inputs // groups, kernel, kernel)
        bias = self.weight(outputs, scale=0.1)
        return self.op("conv", **{"in": x}, weight=weight, bias=bias, stride=stride, **fields)

    def linear(self, x: int, inputs: int, outputs: int, relu: bool = False) -> int:
        weight, bias = self.weight(outputs, inputs), self.weight(outputs, scale=0.1)
        return self.op("linear", **{"in": x}, weight=weight, bias=bias, relu=relu)

    def choose(self, scores: int, options: list[Any], num_results: int = 1) -> list[int]:
        """Add a choice; options are functions that add ops and return results."""
        made = []
        for option in options:
            self.ops = []
            results = option()
            made.append({"ops": self.ops, "results": results})
        self.ops = None
        defines = [self.value() for _ in range(num_results)]
        self.steps.append({"choose": scores, "options": made, "defines": defines})
        return defines

    def plan(self, output: int, size: int = 32) -> Plan:
        return Plan(
            steps=self.steps,
            output=output,
            channels=self.channels,
            size=(size, size),
            mean=[0.5] * self.channels,
            std=[0.25] * self.channels,
            classes=[],
            cost={},
            about={},
            tensors=self.tensors,
        )


def routed_resnet(
    blocks: int = 2, widths: tuple[int, ...] = (16, 32, 64), seed: int = 0, dim: int = 32
) -> Plan:
    """Return a CIFAR ResNet with option A shortcuts and gates on the pooled features."""
    maker = Maker(seed)
    x, before = maker.conv(0, 3, widths[0]), widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            pooled = maker.op("gap", **{"in": x})
            scores = maker.linear(maker.linear(pooled, before, dim, relu=True), dim, 2)
            x = maker.choose(scores, _options(maker, x, before, width, stride))[0]
            before = width
    return maker.plan(maker.linear(maker.op("gap", **{"in": x}), before, 10))


def _options(maker: Maker, x: int, before: int, width: int, stride: int) -> list[Any]:
    def shortcut() -> int:
        if stride == 1 and before == width:
            return x
        new = width - before
        return maker.op("pad", **{"in": x}, stride=stride, before=new // 2, after=new - new // 2)

    def execute() -> list[int]:
        residual = shortcut()
        hidden = maker.conv(x, before, width, stride=stride)
        return [maker.conv(hidden, width, width, residual=residual)]

    return [lambda: [shortcut()], execute]


def write(plan: Plan, path: Path, version: Any = None, **records: Any) -> None:
    """Write a plan as a safetensors file, perhaps with records that other plans lack."""
    text = {
        "version": plan.version if version is None else version,
        "input": {"channels": plan.channels, "size": list(plan.size), "mean": plan.mean, "std": plan.std},
        "classes": plan.classes,
        "steps": plan.steps,
        "output": plan.output,
        **records,
    }
    if type(plan.temperature) is not float or plan.temperature != 1:
        text["temperature"] = plan.temperature
    header: dict[str, Any] = {"__metadata__": {"sidestep_plan": json.dumps(text)}}
    body = b""
    for name, tensor in plan.tensors.items():
        kind = {"int8": "I8", "uint8": "U8"}.get(tensor.dtype.name, "F32")
        data = (tensor.astype("<f4") if kind == "F32" else tensor).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def every_kind() -> Plan:
    """Return a small plan with every kind of op and step."""
    maker = Maker(seed=4)
    x = maker.conv(0, 3, 16, 3)
    pooled = maker.op("max_pool", **{"in": x}, kernel=3, stride=2, padding=1)
    mean = maker.op("avg_pool", **{"in": x}, kernel=2, stride=2, ceil=True)
    mean = maker.op("activate", **{"in": mean}, function="hard_swish")
    mean = maker.op("crop", **{"in": mean}, size=[3, 4])
    mean = maker.op("resize", **{"in": mean}, like=pooled, interpolation="bicubic", antialias=True)
    both = maker.op("concat", **{"in": [pooled, mean]})
    both = maker.op("affine", **{"in": both}, weight=maker.weight(32), bias=maker.weight(32), relu=True)
    features = maker.op("gap", **{"in": both})
    scaled = maker.op("scale", **{"in": [both, maker.op("vmap", **{"in": features}, function="sigmoid")]})
    scores = maker.linear(maker.linear(features, 32, 80, relu=True), 80, 2)
    scores = maker.op("vgather", **{"in": [scores]}, indices=[1, 0])
    scores = maker.op("vadd", **{"in": [scores, maker.op("vconst", weight=maker.weight(2))]}, alpha=0.5)
    x = maker.choose(scores, _options(maker, scaled, 32, 48, 2))[0]
    x = maker.op("add", **{"in": [x, maker.op("relu", **{"in": x}, slope=0.1)]}, relu=False)
    normal = maker.op("layer_norm", **{"in": x}, weight=maker.weight(48), bias=maker.weight(48), eps=1e-5)
    x = maker.op(
        "attention", **{"in": maker.op("tokens", **{"in": normal}, weight=maker.weight(6, 48))}, heads=2
    )
    logits = maker.linear(maker.op("gap", **{"in": x}, first=1, rows=3), 16, 5)
    leave = {"logits": logits, "criterion": "margin", "threshold": 0.9, "temperature": 1.0}
    maker.steps.append({"exit": leave})
    flat = maker.op("flatten", **{"in": x})
    total = maker.op("vsum", **{"in": maker.op("vmul", **{"in": [flat, flat]})})
    root = maker.op("vmap", **{"in": maker.op("vclamp_min", **{"in": total}, min=1e-3)}, function="sqrt")
    last = maker.op("vdiv", **{"in": [maker.op("vaffine", **{"in": logits}, mul=2.0, add=0.1), root]})
    certain = maker.op("vlog_softmax", **{"in": last})
    last = maker.op("vlogaddexp", **{"in": [certain, last]})
    return maker.plan(last, 8)
