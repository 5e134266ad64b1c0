"""Plans with maps of bytes, made for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from plans import Maker
from sidestep_engine import Plan


class ByteMaker(Maker):
    """Adds operations on bytes, with random weights, scales and zero points."""

    def int8(self, *shape: int) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = self.random.integers(-128, 128, shape).astype(np.int8)
        return name

    def positive(self, count: int, scale: float) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = (self.random.uniform(0.5, 1.5, count) * scale).astype(np.float32)
        return name

    def table(self) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = self.random.integers(0, 256, 256).astype(np.uint8)
        return name

    def coding(self) -> dict[str, Any]:
        """Return a scale and a zero point."""
        return {"scale": float(self.random.uniform(0.01, 0.03)), "zero": int(self.random.integers(0, 256))}

    def quantize(self, x: int, **fields: Any) -> int:
        return self.op("quantize", **{"in": x}, **(fields or self.coding()))

    def conv8(
        self, x: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **fields: Any
    ) -> int:
        """Add a convolution of bytes whose results are spread over all of them."""
        groups = fields.setdefault("groups", 1)
        fields.setdefault("padding", kernel // 2)
        fields = self.coding() | fields
        products = inputs // groups * kernel * kernel
        weight_scale = self.positive(outputs, 0.02 / (128 * products**0.5))
        weight, bias = self.int8(outputs, inputs // groups, kernel, kernel), self.weight(outputs, scale=0.5)
        return self.op(
            "conv", **{"in": x}, weight=weight, weight_scale=weight_scale, bias=bias, stride=stride, **fields
        )

    def real_conv8(self, x: int, inputs: int, outputs: int, kernel: int = 3, **fields: Any) -> int:
        """Add a convolution of real numbers, whose weights are int8 in the file alone."""
        products = inputs // fields.setdefault("groups", 1) * kernel * kernel
        fields |= {"stride": 1, "padding": kernel // 2}
        weight_scale = self.positive(outputs, 1 / (128 * products**0.5))
        weight = self.int8(outputs, inputs // fields["groups"], kernel, kernel)
        return self.op(
            "conv",
            **{"in": x},
            weight=weight,
            weight_scale=weight_scale,
            bias=self.weight(outputs, scale=0.5),
            **fields,
        )

    def linear8(self, x: int, inputs: int, outputs: int, **fields: Any) -> int:
        """Add a linear layer whose input becomes bytes."""
        reads = {
            "in_scale": float(self.random.uniform(0.005, 0.02)),
            "in_zero": int(self.random.integers(256)),
        }
        return self.real_linear8(x, inputs, outputs, **reads, **fields)

    def real_linear8(self, x: int, inputs: int, outputs: int, **fields: Any) -> int:
        """Add a linear layer of a real input, whose weights are int8 in the file alone."""
        weight, bias = self.int8(outputs, inputs), self.weight(outputs, scale=0.5)
        weight_scale = self.positive(outputs, 0.01)
        return self.op("linear", **{"in": x}, weight=weight, weight_scale=weight_scale, bias=bias, **fields)

    def scores(self, x: int) -> Plan:
        """Return the plan whose scores are all numbers of a map of bytes."""
        return self.plan(self.op("flatten", **{"in": x}), 8)


def routed_resnet(
    blocks: int = 2, widths: tuple[int, ...] = (16, 32, 64), seed: int = 0, dim: int = 32
) -> Plan:
    """Return a CIFAR ResNet of bytes with option A shortcuts and gates on the pooled features."""
    maker = ByteMaker(seed)
    trunk: dict[str, Any] = {"scale": 0.02, "zero": 0}
    x = maker.conv8(maker.quantize(0, scale=0.02, zero=128), 3, widths[0], relu=True, **trunk)
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            features = maker.op("gap", **{"in": x})
            scores = maker.linear(maker.linear8(features, before, dim, relu=True), dim, 2)
            x = maker.choose(scores, _options(maker, x, (before, width, stride), trunk))[0]
            before = width
    return maker.plan(maker.linear8(maker.op("gap", **{"in": x}), before, 10))


def _options(maker: ByteMaker, x: int, sizes: tuple[int, int, int], trunk: dict[str, Any]) -> list[Any]:
    before, width, stride = sizes

    def shortcut() -> int:
        if stride == 1 and before == width:
            return x
        new = width - before
        return maker.op("pad", **{"in": x}, stride=stride, before=new // 2, after=new - new // 2)

    def execute() -> list[int]:
        residual = shortcut()
        hidden = maker.conv8(x, before, width, stride=stride, relu=True, **trunk)
        return [maker.conv8(hidden, width, width, residual=residual, relu=True, **trunk)]

    return [lambda: [shortcut()], execute]


def every_byte_kind() -> Plan:
    """Return a small plan with every operation that reads or makes bytes."""
    maker = ByteMaker(seed=3)
    x = maker.quantize(maker.conv(0, 3, 16, 3))
    x = maker.conv8(x, 16, 16, 3, residual=x, relu=True)
    x = maker.conv8(x, 16, 16, 3, groups=16, table=maker.table(), inner_scale=0.02, inner_zero=100)
    pooled = maker.op("max_pool", **{"in": x}, kernel=3, stride=2, padding=1)
    mean = maker.op("avg_pool", **{"in": x}, kernel=2, stride=2, ceil=True)
    mean = maker.op("relu", **{"in": maker.op("crop", **{"in": mean}, size=[3, 4])})
    mean = maker.op("resize", **{"in": mean}, like=pooled, align_corners=False)
    both = maker.op("concat", **{"in": [pooled, mean]})
    both = maker.op(
        "affine", **{"in": both}, weight=maker.weight(32), bias=maker.weight(32), **maker.coding()
    )
    features = maker.op("gap", **{"in": both})
    factors = maker.op("vmap", **{"in": features}, function="sigmoid")
    both = maker.op("scale", **{"in": [both, factors]}, **maker.coding())
    scores = maker.linear8(features, 32, 2)
    trunk = {"scale": 0.02, "zero": 7}
    both = maker.quantize(both, **trunk)
    x = maker.choose(scores, [lambda: [both], lambda: [maker.conv8(both, 32, 32, 1, **trunk)]])[0]
    table = maker.op("activate", **{"in": x}, function="silu", table=maker.table(), **maker.coding())
    x = maker.op("add", **{"in": [x, table]}, **maker.coding())
    x = maker.op("pad", **{"in": x}, stride=2, before=1, after=15)
    real = maker.op("dequantize", **{"in": x})
    logits = maker.real_linear8(maker.op("gap", **{"in": real}), 48, 5)
    flat = maker.op("vsum", **{"in": maker.op("flatten", **{"in": x})})
    return maker.plan(maker.op("vadd", **{"in": [logits, flat]}, alpha=1e-6), 8)
