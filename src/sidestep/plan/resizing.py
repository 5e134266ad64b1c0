"""Maps in other sizes: every n-th pixel, the middle, resized, padded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from sidestep.internals import UPSAMPLE_BICUBIC_AA, UPSAMPLE_BILINEAR_AA
from sidestep.plan.vector_ops import Lower, shape_of
from sidestep.plan.writer import Map, Writer

aten = torch.ops.aten


def _slice(
    writer: Writer, node: fx.Node, x: Map, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Map:
    """Note which rows or columns are taken, which what reads the map does at once; or crop the middle."""
    rows, columns = x.steps
    axis = dim % 4
    size = shape_of(node.all_input_nodes[0])[axis]
    if not start and (end in (None, sys.maxsize) or end >= size) and (axis >= 2 or step == 1):
        return Map(x.value, (rows * step, columns) if axis == 2 else (rows, columns * step), border=x.border)
    kept = shape_of(node)[axis]
    if axis < 2 or step != 1 or (start or 0) % size != (size - kept) // 2:
        raise writer.fail("takes a part of a map, and plans its middle or every n-th pixel; use those")
    return _middle(writer, node, x)


def _middle(writer: Writer, node: fx.Node, x: Map) -> Map:
    """Return a crop to what a node has, in one operation where rows were cropped before columns."""
    value, maker = writer.plain(x), writer.maker(x)
    if maker is not None and maker["op"] == "crop":
        value = maker["in"]
    return writer.map("crop", value, size=list(shape_of(node)[2:]))


def _pad(writer: Writer, node: fx.Node, x: Map, padding: Sequence[int], value: float = 0) -> Map:
    wrong = f"pads a map by {list(padding)}, and plans by zeros"
    if value != 0 or min(padding) < 0 or len(padding) not in (4, 6):
        raise writer.fail(f"{wrong}, channels or in front of a convolution; use those")
    if not any(padding[4:]):
        value = writer.plain(x)
        return Map(value, border=tuple(padding[:4]))
    if any(padding[:4]):
        raise writer.fail(f"{wrong}, channels or pixels but not both at once; pad one after the other")
    return writer.map("pad", x.value, stride=writer.stride(x), before=padding[4], after=padding[5])


def padding_of(
    writer: Writer, node: fx.Node, x: Any, inside: int, *, kernel: int, stride: int
) -> tuple[int, dict[str, Any]]:
    """Return the map that a convolution reads, and the fields that say how it pads.

    What pads in front of a strided convolution as TensorFlow does for its size does so for every size: timm's
    networks from there compute their padding from the map.

    Args:
        writer: of the plan.
        node: of the convolution.
        x: what it reads, perhaps with a border still to be added.
        inside: padding of the convolution itself.
        kernel: height and width of its weights.
        stride: of both directions.

    Raises:
        ExportError: for a border of another kind.
    """
    if not isinstance(x, Map) or not any(x.border):
        return writer.plain(x), {"padding": inside}
    padded = shape_of(node.all_input_nodes[0])[2:]
    left, right, top, bottom = x.border
    sizes = padded[0] - top - bottom, padded[1] - left - right
    wanted = [side for size in reversed(sizes) for side in _same(size, kernel, stride)]
    plain = writer.plain(Map(x.value, x.steps))
    if inside == 0 and stride > 1 and list(x.border) == wanted:
        return plain, {"padding": 0, "same": True}
    if len(set(x.border)) == 1:
        return plain, {"padding": inside + left}
    if inside == 0 and list(x.border) == wanted:
        return plain, {"padding": 0, "same": True}
    raise writer.fail(
        f"pads a map by {list(x.border)}, and plans all sides alike or as TensorFlow does; use one of these"
    )


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros in front and behind with which a convolution makes size / stride, rounded up."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _resize(
    writer: Writer, node: fx.Node, x: Map, size: Sequence[int], align_corners: bool, *scales: Any
) -> Map:
    return writer.map("resize", writer.plain(x), size=list(size), align_corners=align_corners)


def _resize_smoothly(
    interpolation: str,
    writer: Writer,
    node: fx.Node,
    x: Map,
    size: Sequence[int],
    align_corners: bool,
    *scales: Any,
) -> Map:
    if align_corners or any(scale is not None for scale in scales):
        raise writer.fail(
            "antialiases with aligned corners or by a scale, and plans by sizes; give interpolate() a size"
        )
    return writer.map(
        "resize",
        writer.plain(x),
        size=list(size),
        align_corners=False,
        interpolation=interpolation,
        antialias=True,
    )


RESIZING: dict[Any, Lower] = {
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
    aten.upsample_bilinear2d.default: _resize,
    UPSAMPLE_BILINEAR_AA.default: partial(_resize_smoothly, "bilinear"),
    UPSAMPLE_BICUBIC_AA.default: partial(_resize_smoothly, "bicubic"),
}
