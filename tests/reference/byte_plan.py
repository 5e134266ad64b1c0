"""The slow, literal reading of what docs/plan.md says of bytes: one image, in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = ("weight", "bias", "weight_scale", "table")


@dataclass(frozen=True)
class Bytes:
    """A map of bytes q that stand for scale * (q - zero)."""

    q: Tensor
    scale: float
    zero: int


def run_on_bytes(op: dict[str, Any], *inputs: Any, **named: Any) -> Any:
    """Return what an operation makes of bytes, or as such."""
    return _OPS[op["op"]](op, *inputs, **named)


def single(x: Any) -> Any:
    """Return float64 numbers rounded once to float32."""
    return np.asarray(x, dtype=np.float64).astype(np.float32)


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of float32 numbers; float64 holds the product exactly, and the sum to 2^-53."""
    a, b, c = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (a, b, c))
    return (a * b + c).astype(np.float32)


def code(v: Any, least: float = 0.0, most: float = 255.0) -> Tensor:
    """Return roundeven(min(max(v, least), most)) as bytes."""
    return torch.from_numpy(np.round(np.minimum(np.maximum(v, least), most)).astype(np.uint8))


def _limits(op: dict[str, Any], scale: float, zero: int) -> tuple[float, float]:
    if op.get("activation") == "relu6":
        return zero, min(255, round(6 / scale) + zero)
    return (zero if op.get("relu") else 0), 255


def _made(op: dict[str, Any], q: Tensor) -> Bytes:
    return Bytes(q, op["scale"], op.get("zero", 0))


def _conv(
    op: dict[str, Any],
    x: Bytes,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    residual: Bytes | None = None,
    table: Tensor | None = None,
) -> Bytes:
    scale, zero = op["scale"], op.get("zero", 0)
    if table is not None:
        scale, zero = op["inner_scale"], op.get("inner_zero", 0)
    sums = _sums(op, x, weight)
    m = x.scale * weight_scale.double().numpy() / scale
    b = (0 if bias is None else bias.double().numpy() / scale) + zero * np.ones(len(weight))
    if residual is not None:
        b = b - residual.zero * (residual.scale / scale)
    v = fma(single(sums), single(m)[:, None, None], single(b)[:, None, None])
    if residual is not None:
        v = fma(residual.q.numpy(), single(residual.scale / scale), v)
    if table is not None:
        return _made(op, table[code(v).long()])
    return _made(op, code(v, *_limits(op, scale, zero)))


def _sums(op: dict[str, Any], x: Bytes, weight: Tensor) -> Any:
    """Return the convolution, tap by tap."""
    kernel, stride, padding = weight.shape[2:], op["stride"], op["padding"]
    sides = [(padding, padding)] * 2
    if op.get("same"):
        sizes = zip(x.q.shape[1:], kernel, strict=True)
        over = [max((math.ceil(n / stride) - 1) * stride + k - n, 0) for n, k in sizes]
        sides = [(n // 2, n - n // 2) for n in over]
    q = np.pad(x.q.numpy().astype(np.int64) - x.zero, [(0, 0), *sides])
    rows, columns = ((q.shape[1 + d] - kernel[d]) // stride + 1 for d in (0, 1))
    out, groups = [], op["groups"]
    for some, taken in zip(weight.chunk(groups), np.split(q, groups), strict=True):
        total = np.zeros((len(some), rows, columns), np.int64)
        for r, c in product(range(kernel[0]), range(kernel[1])):
            tap = taken[:, r::stride, c::stride][:, :rows, :columns]
            total += np.einsum("oi,ihw->ohw", some[:, :, r, c].numpy().astype(np.int64), tap)
        out.append(total)
    return np.concatenate(out)


def _quantize(op: dict[str, Any], x: Any) -> Bytes:
    scale, zero = op["scale"], op.get("zero", 0)
    if isinstance(x, Bytes):
        m = x.scale / scale
        return _made(op, code(fma(x.q.numpy(), single(m), single(zero - x.zero * m))))
    return _made(op, code(np.nan_to_num(fma(x.numpy(), single(1 / scale), zero))))


def _real(x: Bytes) -> Tensor:
    return (x.q.int() - x.zero).float() * torch.tensor(x.scale)


def _kept(x: Bytes, q: Tensor) -> Bytes:
    return Bytes(q, x.scale, x.zero)


def _avg_pool(op: dict[str, Any], x: Bytes) -> Bytes:
    kernel, stride = op["kernel"], op["stride"]
    rounded = math.ceil if op["ceil"] else math.floor
    rows, columns = (rounded((size - kernel) / stride) + 1 for size in x.q.shape[1:])
    made = torch.zeros(x.q.shape[0], rows, columns, dtype=torch.uint8)
    for r, c in product(range(rows), range(columns)):
        window = x.q[:, r * stride : r * stride + kernel, c * stride : c * stride + kernel].flatten(1)
        made[:, r, c] = code(single(window.sum(dim=1)) * single(1 / window.shape[1]))
    return _kept(x, made)


def _pad(op: dict[str, Any], x: Bytes) -> Bytes:
    taken = x.q[:, :: op["stride"], :: op["stride"]]
    before, after = (taken.new_full((op[side], *taken.shape[1:]), x.zero) for side in ("before", "after"))
    return _kept(x, torch.cat([before, taken, after]))


def _crop(op: dict[str, Any], x: Bytes) -> Bytes:
    (height, width), (_, rows, columns) = op["size"], x.q.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    return _kept(x, x.q[:, top : top + height, left : left + width])


def _resize(op: dict[str, Any], x: Bytes, like: Any = None) -> Bytes:
    size = op["size"] if like is None else list((like.q if isinstance(like, Bytes) else like).shape[1:])
    anti = bool(op.get("antialias"))
    aligned = False if anti else bool(op.get("align_corners"))
    mode = op.get("interpolation", "bilinear")
    out = F.interpolate(x.q[None].float(), size, mode=mode, align_corners=aligned, antialias=anti)
    return _kept(x, code(out[0].numpy()))


def _max_pool(op: dict[str, Any], x: Bytes) -> Bytes:
    out = F.max_pool2d(x.q[None].float(), op["kernel"], op["stride"], op["padding"])
    return _kept(x, out[0].to(torch.uint8))


def _concat(op: dict[str, Any], *parts: Bytes) -> Bytes:
    assert len({(part.scale, part.zero) for part in parts}) == 1
    return _kept(parts[0], torch.cat([part.q for part in parts]))


def _affine(op: dict[str, Any], x: Bytes, weight: Tensor, bias: Tensor) -> Bytes:
    scale, zero = op["scale"], op.get("zero", 0)
    m = x.scale * weight.double().numpy() / scale
    b = bias.double().numpy() / scale + zero - x.zero * m
    v = fma(x.q.numpy(), single(m)[:, None, None], single(b)[:, None, None])
    return _made(op, code(v, *_limits(op, scale, zero)))


def _add(op: dict[str, Any], a: Bytes, b: Bytes) -> Bytes:
    scale, zero = op["scale"], op.get("zero", 0)
    ma, mb = a.scale / scale, b.scale / scale
    first = fma(a.q.numpy(), single(ma), single(zero - a.zero * ma - b.zero * mb))
    return _made(op, code(fma(b.q.numpy(), single(mb), first), *_limits(op, scale, zero)))


def _scale(op: dict[str, Any], x: Bytes, factors: Tensor) -> Bytes:
    m = factors.numpy() * single(x.scale / op["scale"])
    b = fma(np.float32(-x.zero), m, np.float32(op.get("zero", 0)))
    return _made(op, code(np.nan_to_num(fma(x.q.numpy(), m[:, None, None], b[:, None, None]))))


def _gap(op: dict[str, Any], x: Bytes) -> Tensor:
    sums = single(x.q.long().sum((1, 2)))
    return torch.from_numpy(
        fma(sums, single(x.scale / (x.q.shape[1] * x.q.shape[2])), single(-x.zero * x.scale))
    )


def _linear(
    op: dict[str, Any], x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    scale, zero = op["in_scale"], op.get("in_zero", 0)
    q = code(np.nan_to_num(fma(x.numpy(), single(1 / scale), zero))).long() - zero
    sums = single((weight.long() * q).sum(dim=1))
    m = single(scale * weight_scale.double().numpy())
    out = torch.from_numpy(fma(sums, m, 0.0 if bias is None else bias.numpy()))
    assert "activation" not in op and "slope" not in op  # what these do is tested on real vectors
    return out.relu() if op.get("relu") else out


_OPS: dict[str, Callable[..., Any]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "add": _add,
    "scale": _scale,
    "pad": _pad,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "crop": _crop,
    "resize": _resize,
    "concat": _concat,
    "relu": lambda op, x: _kept(x, x.q.clamp_min(x.zero)),
    "activate": lambda op, x, table: _made(op, table[x.q.long()]),
    "gap": _gap,
    "flatten": lambda op, x: _real(x).flatten(),
    "quantize": _quantize,
    "dequantize": lambda op, x: _real(x),
}
