"""What ATen operations on maps are in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sidestep.internals import ADAPTIVE_AVG_POOL2D, BATCH_NORM_INFERENCE, UNSAFE_VIEW
from sidestep.plan.activations import MAP_ACTIVATIONS
from sidestep.plan.resizing import RESIZING, padding_of
from sidestep.plan.token_ops import folded, moved
from sidestep.plan.vector_ops import Lower, normalisation, shape_of
from sidestep.plan.writer import Constant, Map, Traced, Vector, View, Writer

aten = torch.ops.aten


def _one(writer: Writer, numbers: Sequence[int], what: str) -> int:
    """Return the number that stands for both directions."""
    if len(set(numbers)) != 1:
        raise writer.fail(f"{what} by {list(numbers)}, and plans by one number; make them equal")
    return numbers[0]


def _convolution(
    writer: Writer,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Constant | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Map:
    if transposed or not isinstance(weight, Constant) or set(dilation) != {1}:
        raise writer.fail("convolves transposed, dilated or by features, and plans do not; use plain layers")
    step, inside = (
        _one(writer, stride, "strides a convolution"),
        _one(writer, padding, "pads a convolution"),
    )
    value, padded = padding_of(writer, node, x, inside, kernel=weight.tensor.shape[2], stride=step)
    return writer.map(
        "conv",
        value,
        weight=writer.weights.store(weight.tensor),
        bias=None if bias is None else writer.weights.store(bias.tensor),
        stride=step,
        **padded,
        groups=groups,
        residual=None,
        relu=False,
    )


def _add(writer: Writer, node: fx.Node, a: Any, b: Any, *, alpha: float = 1) -> Map:
    if isinstance(a, Map) and isinstance(b, Map) and alpha == 1:
        return writer.map("add", [writer.plain(a), writer.plain(b)], relu=False)
    x, constant = (a, b) if isinstance(a, Map) else (b, a)
    channels = shape_of(node)[1]
    shift = _per_channel(writer, constant, channels)
    if alpha != 1:
        raise writer.fail(f"adds to a map with factor {alpha}, and plans have none; multiply before")
    return _affine(writer, x, torch.ones(channels), shift)


def _mul(writer: Writer, node: fx.Node, a: Any, b: Any) -> Map:
    x, factor = (a, b) if isinstance(a, Map) else (b, a)
    channels = shape_of(node)[1]
    if isinstance(factor, Vector) and factor.codes.shape[-3:] == (channels, 1, 1):
        return writer.map("scale", [writer.plain(x), writer.dense(factor)])
    factors, maker = _per_channel(writer, factor, channels), writer.maker(x) if x.steps == (1, 1) else None
    if maker and maker["op"] == "conv" and len(node.all_input_nodes[0].users) == 1:
        return folded(writer, maker, factors, torch.zeros(channels))
    return _affine(writer, x, factors, torch.zeros(channels))


def _affine(writer: Writer, x: Map, factor: Tensor, shift: Tensor, name: str = "") -> Map:
    """Return factor * x + shift, per channel; the name is that of the layer, if it has one.

    What multiplies or adds behind another such operation becomes one with it.
    """
    maker = writer.maker(x) if x.steps == (1, 1) else None
    if maker is not None and maker["op"] == "affine":
        before = [writer.weights.tensors[maker[field]] for field in ("weight", "bias")]
        factor, shift = before[0] * factor, before[1] * factor + shift
        x, name = Map(maker["in"]), ""
    weight = writer.weights.store(factor, name and f"{name}.factor")
    bias = writer.weights.store(shift, name and f"{name}.shift")
    return writer.map("affine", writer.plain(x), weight=weight, bias=bias, relu=False)


def _per_channel(writer: Writer, x: Any, channels: int) -> Tensor:
    """Return the (C,) numbers that a constant is."""
    tensor = x.tensor if isinstance(x, Constant) else torch.tensor(x) if isinstance(x, int | float) else None
    if tensor is None or (tensor.numel() != 1 and tensor.shape[-3:] != (channels, 1, 1)):
        raise writer.fail("computes with a map and what is no number per channel; use maps of one size")
    return tensor.float().flatten().expand(channels)


def _batch_norm(writer: Writer, node: fx.Node, x: Map, *args: Any) -> list[Any]:
    (factor, shift), name = normalisation(writer, *args)
    maker = writer.maker(x)
    # What prepare() leaves: layers that run several times, or are no plain nn.BatchNorm2d.
    if maker and maker["op"] == "conv" and len(node.all_input_nodes[0].users) == 1:
        return [folded(writer, maker, factor, shift), None, None]
    return [_affine(writer, x, factor, shift, name), None, None]


def _max_pool(
    writer: Writer,
    node: fx.Node,
    x: Map,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> list[Any]:
    if ceil_mode or set(dilation) != {1}:
        raise writer.fail("takes maxima with ceil_mode or dilation, and plans do not; leave them out")
    pooled = writer.map(
        "max_pool",
        writer.plain(x),
        kernel=_one(writer, kernel, "takes maxima"),
        stride=_one(writer, stride or kernel, "strides a pooling"),
        padding=_one(writer, padding, "pads a pooling"),
    )
    return [pooled, None]


def _avg_pool(
    writer: Writer,
    node: fx.Node,
    x: Map,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Map:
    if set(padding) != {0} or divisor is not None:
        raise writer.fail("averages with padding or a divisor, and plans do not; leave them out")
    return writer.map(
        "avg_pool",
        writer.plain(x),
        kernel=_one(writer, kernel, "averages"),
        stride=_one(writer, stride or kernel, "strides a pooling"),
        ceil=ceil_mode,
    )


def _mean(writer: Writer, node: fx.Node, x: Map, dims: Sequence[int], *args: Any, **kwargs: Any) -> Vector:
    if sorted(dim % 4 for dim in dims) != [2, 3]:
        raise writer.fail(f"averages a map over dimensions {list(dims)}, and plans over space; use (2, 3)")
    return writer.vector("gap", writer.plain(x), shape_of(node))


def _adaptive_pool(writer: Writer, node: fx.Node, x: Map, size: Sequence[int]) -> Vector:
    if set(size) != {1}:
        raise writer.fail(f"averages to {list(size)} pixels, and plans to one; pool to 1")
    return writer.vector("gap", writer.plain(x), shape_of(node))


def _cat(writer: Writer, node: fx.Node, parts: Sequence[Traced], dim: int = 0) -> Map:
    if dim % 4 != 1:
        raise writer.fail(f"joins maps along dimension {dim}, and plans along channels; use dim=1")
    return writer.map("concat", [writer.plain(part) for part in parts])


def _view(writer: Writer, node: fx.Node, x: Map, shape: Sequence[int]) -> Map | View | Vector:
    """Return a map as one row, as a vector, or in another shape."""
    found = shape_of(node)
    if len(found) == 2 and found[0] == 1:
        return writer.vector("flatten", writer.plain(x), found)
    view: Map | View = moved(writer, node, aten.view.default, x, shape)
    return view


MAP_OPS: dict[Any, Lower] = {
    **MAP_ACTIVATIONS,
    **RESIZING,
    aten.convolution.default: _convolution,
    aten.add.Tensor: _add,
    aten.mul.Tensor: _mul,
    aten.native_batch_norm.default: _batch_norm,
    BATCH_NORM_INFERENCE.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.mean.dim: _mean,
    ADAPTIVE_AVG_POOL2D.default: _adaptive_pool,
    aten.cat.default: _cat,
    aten.view.default: _view,
    UNSAFE_VIEW.default: _view,
}
