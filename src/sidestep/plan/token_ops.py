"""What ATen operations on maps in other orders are in a plan: tokens, and pixels with their channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sidestep.internals import ATTENTION_ON_CPU, UNSAFE_VIEW
from sidestep.plan.activations import MAP_ACTIVATIONS
from sidestep.plan.format import Op
from sidestep.plan.vector_ops import Lower, shape_of
from sidestep.plan.writer import Constant, Map, Traced, Vector, View, Writer, codes_of

aten = torch.ops.aten

_VIEWS = (aten.view.default, UNSAFE_VIEW.default, aten.reshape.default)


def moved(writer: Writer, node: fx.Node, target: Any, x: Map | View, *args: Any, **kwargs: Any) -> Any:
    """Return what an operation that moves entries makes of a map: it, views of it, or a pixel's vector."""
    view = x if isinstance(x, View) else writer.view(x, shape_of(node.all_input_nodes[0]))
    # Codes are not always laid out as the tensor is.
    move: Callable[..., Any] = Tensor.reshape if target in _VIEWS else target
    result = move(view.codes, *args, **kwargs)
    if isinstance(result, Tensor):
        return _pixel(writer, view, result) if target == aten.select.int else _shown(view, result)
    return [_shown(view, codes) for codes in result]


def _shown(view: View, codes: Tensor) -> Map | View:
    """Return a view of the same map, or the map itself where it is that."""
    if codes.shape == (1, *view.size) and torch.equal(codes[0], codes_of(view.size)):
        return Map(view.value)
    return View(view.value, view.size, codes)


def _pixel(writer: Writer, view: View, codes: Tensor) -> Vector | Map | View:
    """Return what was selected: the vector of a token, or anything else."""
    place = int(codes.flatten()[0]) if codes.numel() == view.size[0] else -1
    if 0 <= place < len(view.pixels) and view.size[2] == 1 and torch.equal(codes[0], view.pixels[place]):
        return writer.vector("gap", view.value, codes.shape, first=place, rows=1)
    return _shown(view, codes)


def _pixels(writer: Writer, x: Traced, what: str) -> View:
    """Return a tensor of all pixels with their channels last.

    Raises:
        ExportError: for any other tensor.
    """
    if isinstance(x, View) and x.is_of_pixels:
        return x
    raise writer.fail(f"{what} along other dimensions than a map's channels, and plans along these alone")


def _like(view: View, made: Map, channels: int) -> View:
    """Return a map of as many pixels in the order in which a view shows its own."""
    size = (channels, *view.size[1:])
    return View(made.value, size, codes_of(size).flatten(1).T.reshape(*view.codes.shape[:-1], channels))


def _layer_norm(
    writer: Writer,
    node: fx.Node,
    x: Traced,
    shape: Sequence[int],
    weight: Constant | None,
    bias: Constant | None,
    eps: float,
) -> list[Any]:
    view = _pixels(writer, x, "normalises")
    if list(shape) != [view.size[0]]:
        raise writer.fail(f"normalises over {list(shape)}, and plans over channels; use one dimension")
    factor, shift = (
        writer.weights.store(torch.full(tuple(shape), empty) if given is None else given.tensor)
        for given, empty in ((weight, 1.0), (bias, 0.0))
    )
    made = writer.map("layer_norm", view.value, weight=factor, bias=shift, eps=float(eps))
    return [_like(view, made, view.size[0]), None, None]


def _linear(writer: Writer, x: Traced, weight: Any, bias: Any) -> View:
    """Write a linear layer of every pixel, which is a convolution of one."""
    view = _pixels(writer, x, "multiplies")
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        raise writer.fail("multiplies maps by each other, and plans by weights or in attention alone")
    name = writer.weights.name_of(weight.tensor)
    made = writer.map(
        "conv",
        view.value,
        weight=writer.weights.store(weight.tensor[:, :, None, None], name),
        bias=None if bias is None else writer.weights.store(bias.tensor),
        stride=1,
        padding=0,
        groups=1,
        residual=None,
        relu=False,
    )
    return _like(view, made, len(weight.tensor))


def _mm(writer: Writer, node: fx.Node, x: Any, weight: Any) -> View:
    return _linear(writer, x, _transposed(weight), None)


def _bmm(writer: Writer, node: fx.Node, x: Any, weight: Any) -> View:
    """Write what torch 2.11 makes of a linear layer whose input is not contiguous: a product of one image."""
    if not isinstance(weight, Constant):
        return _mm(writer, node, x, weight)
    if len(weight.tensor) > 1:
        raise writer.fail(
            "multiplies parts of a map by weights of their own, and plans multiply all pixels by the same"
        )
    return _mm(writer, node, x, Constant(weight.tensor[0]))


def _addmm(
    writer: Writer, node: fx.Node, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1
) -> View:
    if (beta, alpha) != (1, 1):
        raise writer.fail(f"uses addmm with factors {beta} and {alpha}, and plans have none; leave them out")
    return _linear(writer, x, _transposed(weight), bias)


def _transposed(weight: Any) -> Any:
    return Constant(weight.tensor.t()) if isinstance(weight, Constant) else weight


def _add(writer: Writer, node: fx.Node, a: Any, b: Any, *, alpha: float = 1) -> View:
    if alpha != 1:
        raise writer.fail(f"adds to a map with factor {alpha}, and plans have none; multiply before")
    x, other = (a, b) if isinstance(a, View) else (b, a)
    if isinstance(other, View) and x.alike(other):
        return View(writer.map("add", [x.value, other.value], relu=False).value, x.size, x.codes)
    numbers = _per_pixel(writer, x, other)
    if torch.equal(numbers, numbers[:1].expand_as(numbers)):
        return _scaled(writer, x, torch.ones(x.size[0]), numbers[0])
    return _tokens(writer, x, numbers, x.codes.shape)


def _mul(writer: Writer, node: fx.Node, a: Any, b: Any) -> View:
    x, other = (a, b) if isinstance(a, View) else (b, a)
    numbers = _per_pixel(writer, x, other)
    if not torch.equal(numbers, numbers[:1].expand_as(numbers)):
        raise writer.fail("multiplies every pixel by its own numbers, and plans by one per channel; use that")
    return _scaled(writer, x, numbers[0], torch.zeros(x.size[0]))


def _per_pixel(writer: Writer, x: View, other: Any) -> Tensor:
    """Return a constant as (H * W, C) numbers, one for every entry of a map's pixels."""
    if isinstance(other, Traced) and not isinstance(other, Constant):
        raise writer.fail("computes with two maps in different orders, and plans with equal ones; use one")
    view = _pixels(writer, x, "computes with numbers")
    numbers = other.tensor if isinstance(other, Constant) else torch.tensor(other)
    return numbers.float().expand(view.codes.shape).reshape(-1, view.size[0])


def _scaled(writer: Writer, x: View, factor: Tensor, shift: Tensor) -> View:
    """Write factor * x + shift by channel, in the convolution in front if there is one."""
    maker = writer.maker(Map(x.value))
    if maker is not None and maker["op"] == "conv":
        made = folded(writer, maker, factor, shift)
    else:
        fields = {"weight": writer.weights.store(factor), "bias": writer.weights.store(shift)}
        made = writer.map("affine", x.value, **fields, relu=False)
    return View(made.value, x.size, x.codes)


def folded(writer: Writer, op: Op, factor: Tensor, shift: Tensor) -> Map:
    """Return a convolution with what follows it in its weights; the one without is left unread."""
    weights, name = writer.weights, op["weight"]
    if op["bias"] is not None:
        shift = shift + factor * weights.tensors[op["bias"]]
    weight = weights.store(weights.tensors[name] * factor.view(-1, 1, 1, 1), f"{name}.folded")
    fields = {key: item for key, item in op.items() if key not in ("op", "in", "out")}
    fields |= {"weight": weight, "bias": weights.store(shift, f"{name}.shift")}
    return writer.map("conv", op["in"], **fields)


def _tokens(writer: Writer, x: View, numbers: Tensor, shape: torch.Size) -> View:
    """Write pixels row by row with numbers added, behind those that the numbers have in front.

    Args:
        writer: of the plan.
        x: all pixels with their channels last.
        numbers: (P + H * W, C), the first P of which stand in front.
        shape: of what is returned.
    """
    value, maker = x.value, writer.maker(Map(x.value))
    if maker is not None and maker["op"] == "tokens":
        before = writer.weights.tensors[maker["weight"]]
        numbers = numbers.clone()
        numbers[len(numbers) - len(before) :] += before
        value = maker["in"]
    made = writer.map("tokens", value, weight=writer.weights.store(numbers, "tokens"))
    size = (x.size[0], len(numbers), 1)
    return View(made.value, size, codes_of(size).flatten(1).T.reshape(shape))


def _cat(writer: Writer, node: fx.Node, parts: Sequence[Traced], dim: int = 0) -> View:
    """Write tokens that are the same for every image in front of others."""
    *front, x = parts
    view = _pixels(writer, x, "joins maps")
    constants = [part.tensor for part in front if isinstance(part, Constant)]
    if len(constants) != len(front) or view.codes.dim() != 3 or dim % 3 != 1:
        raise writer.fail("joins maps in another order, and plans join channels or tokens with constants")
    rest = torch.zeros(len(view.pixels), view.size[0])
    numbers = torch.cat([*(each.float().flatten(0, 1) for each in constants), rest])
    return _tokens(writer, view, numbers, shape_of(node))


def _mean(writer: Writer, node: fx.Node, x: View, dims: Sequence[int], *args: Any, **kwargs: Any) -> Vector:
    """Write the mean of all pixels, or of those of some rows."""
    kept = [dim for dim in range(x.codes.dim()) if dim not in {dim % x.codes.dim() for dim in dims}]
    codes, (_, height, width) = x.codes.reshape(-1, x.codes.shape[-1]), x.size
    first, count = int(codes[0, 0]), len(codes)
    whole = kept == [0, x.codes.dim() - 1] and not first % width and not count % width
    if not whole or not torch.equal(codes, x.pixels[first : first + count]):
        raise writer.fail(f"averages over dimensions {list(dims)}, and plans over pixels; use all of them")
    rows = {} if count == height * width else {"first": first // width, "rows": count // width}
    return writer.vector("gap", x.value, shape_of(node), **rows)


def _attention(
    writer: Writer,
    node: fx.Node,
    query: Any,
    key: Any,
    value: Any,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> list[Any]:
    """Write softmax(q k^T / sqrt(d)) v of every head (Vaswani et al. 2017, eq. 1)."""
    parts = (query, key, value)
    if dropout:
        raise writer.fail("drops attention at random, and plans draw no numbers; leave noise to training")
    if is_causal or attn_mask is not None or not all(isinstance(part, View) for part in parts):
        raise writer.fail("attends with a mask or to constants, and plans to all tokens; leave it out")
    _, heads, count, size = query.codes.shape
    if scale is not None and abs(scale * size**0.5 - 1) > 1e-6:
        raise writer.fail(f"scales attention by {scale}, and plans by the root of a head's size; use that")
    read = _queries_keys_values(writer, parts, heads * size)
    if read is None:
        raise writer.fail("attends to parts of a map, and plans to all of its pixels by heads; use these")
    made = writer.map("attention", read, heads=heads)
    pixels = (heads * size, *query.size[1:])
    codes = codes_of(pixels).view(1, heads, size, count).transpose(2, 3)
    return [View(made.value, pixels, codes), None]


def _queries_keys_values(writer: Writer, parts: Sequence[View], channels: int) -> int | None:
    """Return the map of (queries, keys, values) that three views show by heads, or None."""
    _, heads, count, size = parts[0].codes.shape
    area = parts[0].size[1:]
    by_heads = torch.arange(channels * count).view(1, heads, size, count).transpose(2, 3)
    if any(part.size[1:] != area or part.codes.shape != by_heads.shape for part in parts):
        return None
    if area[0] * area[1] != count:
        return None
    if len({part.value for part in parts}) == 1 and parts[0].size[0] == 3 * channels:
        starts = [number * channels * count for number in range(3)]
        whole = [torch.equal(part.codes, by_heads + at) for part, at in zip(parts, starts, strict=True)]
        return parts[0].value if all(whole) else None
    if any(part.size[0] != channels or not torch.equal(part.codes, by_heads) for part in parts):
        return None
    return writer.map("concat", [part.value for part in parts]).value


def _activated(lower: Lower) -> Lower:
    """Return what writes an activation of a view, which changes no order."""

    def write(writer: Writer, node: fx.Node, x: View, *args: Any, **kwargs: Any) -> View:
        made: Map = lower(writer, node, Map(x.value), *args, **kwargs)
        return View(made.value, x.size, x.codes)

    return write


VIEW_OPS: dict[Any, Lower] = {
    **{target: _activated(lower) for target, lower in MAP_ACTIVATIONS.items()},
    aten.native_layer_norm.default: _layer_norm,
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
    aten.mul.Tensor: _mul,
    aten.cat.default: _cat,
    aten.mean.dim: _mean,
    ATTENTION_ON_CPU.default: _attention,
}
