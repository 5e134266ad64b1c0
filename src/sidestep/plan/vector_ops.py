"""What ATen operations on vectors are in a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sidestep.internals import BATCH_NORM_INFERENCE, LOG_SOFTMAX
from sidestep.plan.activations import VECTOR_ACTIVATIONS
from sidestep.plan.writer import Constant, Traced, Vector, Writer

aten = torch.ops.aten

# Takes the writer, the node, and the node's arguments with tensors as the plan has them.
Lower = Callable[..., Any]


def shape_of(node: fx.Node) -> torch.Size:
    """Return the shape of what a node computes."""
    shape: torch.Size = node.meta["val"].shape
    return shape


def _map(function: str, writer: Writer, node: fx.Node, x: Vector) -> Vector:
    return writer.vector("vmap", writer.dense(x), x.codes.shape, function=function)


def _affine(writer: Writer, x: Vector, *, mul: float = 1.0, add: float = 0.0) -> Vector:
    if (mul, add) == (1.0, 0.0):
        return x
    return writer.vector("vaffine", writer.dense(x), x.codes.shape, mul=mul, add=add)


def _pair(op: str, writer: Writer, a: Traced, b: Traced, **fields: Any) -> Vector:
    """Return an operation on two vectors of one shape, of which either may have one entry or be spread."""
    codes = [writer.as_vector(x).codes for x in (a, b)]
    shape = (codes[0] + codes[1]).shape
    spread = [c if c.numel() == 1 else c.expand(shape) for c in codes]
    return writer.vector(op, [writer.dense(Vector(c)) for c in spread], shape, **fields)


def _number(x: Any) -> float | None:
    """Return the number that an argument is, or None if it is a tensor of several or differs by image."""
    if isinstance(x, Constant):
        return float(x.tensor) if x.tensor.dim() == 0 else None
    return float(x) if isinstance(x, int | float) else None


def _add(sign: int, writer: Writer, node: fx.Node, a: Any, b: Any, *, alpha: float = 1) -> Vector:
    factor = float(sign * alpha)
    if isinstance(a, Vector) and (number := _number(b)) is not None:
        return _affine(writer, a, add=factor * number)
    if isinstance(b, Vector) and factor == 1 and _is_zero(a) and b.codes.shape == shape_of(node):
        return b  # sums that begin with zeros
    return _pair("vadd", writer, a, b, alpha=factor)


def _is_zero(x: Any) -> bool:
    return isinstance(x, Constant) and not x.tensor.any()


def _rsub(writer: Writer, node: fx.Node, a: Traced, b: Any, alpha: float = 1) -> Vector:
    if isinstance(a, Vector) and (number := _number(b)) is not None:
        return _affine(writer, a, mul=-float(alpha), add=number)
    return _pair("vadd", writer, b, a, alpha=-float(alpha))


def _mul(writer: Writer, node: fx.Node, a: Any, b: Any) -> Vector:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Vector) and (number := _number(y)) is not None:
            return _affine(writer, x, mul=number)
    return _pair("vmul", writer, a, b)


def _div(writer: Writer, node: fx.Node, a: Traced, b: Any) -> Vector:
    if isinstance(a, Vector) and (number := _number(b)) is not None:
        return _affine(writer, a, mul=1 / number)
    return _pair("vdiv", writer, a, b)


def _clamp_min(writer: Writer, node: fx.Node, x: Any, least: Any) -> Vector:
    number = _number(least)
    if number is None:
        raise writer.fail("bounds a vector by another, and plans by a number alone; clamp it by one")
    return writer.vector("vclamp_min", writer.dense(x), shape_of(node), min=number)


def _sum(writer: Writer, node: fx.Node, x: Vector, *args: Any, **kwargs: Any) -> Vector:
    shape = shape_of(node)
    if shape.numel() != 1:
        raise writer.fail(f"sums a vector to shape {tuple(shape)}, and plans sum all entries; sum over all")
    return writer.vector("vsum", writer.dense(x), shape)


def _mean(writer: Writer, node: fx.Node, x: Vector, *args: Any, **kwargs: Any) -> Vector:
    shape, size = shape_of(node), x.codes.numel()
    if shape.numel() == size:
        return Vector(x.codes.reshape(shape))
    return _affine(writer, _sum(writer, node, x), mul=1 / size)


def _same_strides(
    writer: Writer, node: fx.Node, x: Vector, size: Sequence[int], strides: Sequence[int], start: int = 0
) -> Vector:
    """Return a vector in whose one long dimension nothing moves, as pooling of channels_last maps ends in."""
    if start or tuple(size) != x.codes.shape or sum(side > 1 for side in size) > 1:
        raise writer.fail("shows a vector by strides, and plans by shapes; use reshape or permute")
    return x


def _log_softmax(writer: Writer, node: fx.Node, x: Vector, dim: int, half_to_float: bool) -> Vector:
    shape = x.codes.shape
    if shape[dim] != shape.numel():
        raise writer.fail(f"takes a softmax over a part of {tuple(shape)}, and plans over all; use one row")
    return writer.vector("vlog_softmax", writer.dense(x), shape)


def _log_add_exp(writer: Writer, node: fx.Node, a: Traced, b: Traced) -> Vector:
    return _pair("vlogaddexp", writer, a, b)


def _norm(writer: Writer, node: fx.Node, x: Vector, order: float = 2, *args: Any, **kwargs: Any) -> Vector:
    if order != 2:
        raise writer.fail(f"takes a norm of order {order}, and plans know the Euclidean alone; use order 2")
    return _map("sqrt", writer, node, _sum(writer, node, _pair("vmul", writer, x, x)))


def _linear(writer: Writer, node: fx.Node, x: Any, weight: Any, bias: Any, name: str = "") -> Vector:
    """Lower W x + b for an (O, I) weight, which may have the name of another in a new shape."""
    if not isinstance(x, Vector) or not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise writer.fail("multiplies matrices, and plans weights with vectors alone; use linear layers")
    return writer.vector(
        "linear",
        writer.dense(x),
        shape_of(node),
        weight=writer.weights.store(weight.tensor, name),
        bias=None if bias is None else writer.weights.store(bias.tensor),
        relu=False,
    )


def _mm(writer: Writer, node: fx.Node, x: Any, weight: Any) -> Vector:
    return _linear(writer, node, x, _transposed(weight), None)


def _addmm(
    writer: Writer, node: fx.Node, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1
) -> Vector:
    if (beta, alpha) != (1, 1):
        raise writer.fail(f"uses addmm with factors {beta} and {alpha}, and plans have none; leave them out")
    return _linear(writer, node, x, _transposed(weight), bias)


def _transposed(weight: Any) -> Any:
    # Layers transpose their weight, and this is that weight again, so that it finds its name.
    return Constant(weight.tensor.t()) if isinstance(weight, Constant) else weight


def _convolution(writer: Writer, node: fx.Node, x: Any, weight: Any, bias: Any, *rest: Any) -> Vector:
    """Lower a 1x1 convolution of pooled features, which is timm's linear layer."""
    if not isinstance(weight, Constant) or set(weight.tensor.shape[2:]) != {1} or rest[-1] != 1:
        raise writer.fail("convolves a vector, and plans convolve maps alone; use linear layers")
    name = writer.weights.name_of(weight.tensor)
    return _linear(writer, node, x, Constant(weight.tensor.flatten(1)), bias, name)


def _batch_norm(writer: Writer, node: fx.Node, x: Vector, *args: Any) -> list[Any]:
    (factor, shift), _ = normalisation(writer, *args)
    # Of a vector that lies as a map of one pixel, too.
    shape = (1, -1, *[1] * (x.codes.dim() - 2))
    scaled = _pair("vmul", writer, x, Constant(factor.view(shape)))
    return [_pair("vadd", writer, scaled, Constant(shift.view(shape)), alpha=1.0), None, None]


def _layer_norm(
    writer: Writer,
    node: fx.Node,
    x: Vector,
    shape: Sequence[int],
    weight: Constant | None,
    bias: Constant | None,
    eps: float,
) -> list[Any]:
    """Lower (x - mean) / sqrt(variance + eps) * weight + bias of one pixel's channels."""
    count = x.codes.numel()
    if list(shape) != [count] or x.codes.shape[-1] != count:
        raise writer.fail(f"normalises a vector over {list(shape)}, and plans over all of it; use one row")
    mean = _affine(writer, writer.vector("vsum", writer.dense(x), torch.Size([1])), mul=1 / count)
    rest = _pair("vadd", writer, x, mean, alpha=-1.0)
    squares = writer.vector("vsum", writer.dense(_pair("vmul", writer, rest, rest)), torch.Size([1]))
    scale = _map("sqrt", writer, node, _affine(writer, squares, mul=1 / count, add=float(eps)))
    out = _pair("vdiv", writer, rest, scale)
    if weight is not None:
        out = _pair("vmul", writer, out, weight)
    return [out if bias is None else _pair("vadd", writer, out, bias, alpha=1.0), None, None]


def normalisation(
    writer: Writer,
    weight: Constant | None,
    bias: Constant | None,
    mean: Constant,
    variance: Constant,
    *settings: float,
) -> tuple[tuple[Tensor, Tensor], str]:
    """Return the (C,) factor and the (C,) shift that BatchNorm is in evaluation, and its name.

    Args:
        writer: of the plan.
        weight: (C,).
        bias: (C,).
        mean: (C,) of the running statistics.
        variance: (C,) of the running statistics.
        settings: perhaps whether it is in training mode, momentum and epsilon.
    """
    *mode, _, eps = settings
    if any(mode):
        raise writer.fail("normalises by the statistics of the batch, and plans see one image; call eval()")
    factor = (variance.tensor.double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.tensor
    shift = -mean.tensor * factor
    if bias is not None:
        shift = shift + bias.tensor
    name = writer.weights.name_of(mean.tensor).removesuffix(".running_mean")
    return (factor.float(), shift.float()), name


VECTOR_OPS: dict[Any, Lower] = {
    **{getattr(aten, name).default: partial(_map, name) for name in ("tanh", "sqrt", "exp", "log")},
    **VECTOR_ACTIVATIONS,
    aten.as_strided.default: _same_strides,
    LOG_SOFTMAX.default: _log_softmax,
    aten.logaddexp.default: _log_add_exp,
    aten.add.Tensor: partial(_add, 1),
    aten.add.Scalar: partial(_add, 1),
    aten.sub.Tensor: partial(_add, -1),
    aten.sub.Scalar: partial(_add, -1),
    aten.rsub.Tensor: _rsub,
    aten.rsub.Scalar: _rsub,
    aten.neg.default: lambda writer, node, x: _affine(writer, x, mul=-1.0),
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.clamp_min.default: _clamp_min,
    aten.clamp_min.Tensor: _clamp_min,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_batch_norm.default: _batch_norm,
    BATCH_NORM_INFERENCE.default: _batch_norm,
}
