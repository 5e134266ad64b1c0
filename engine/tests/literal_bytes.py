"""Operations on maps of bytes by slow, literal NumPy: whole numbers, and docs/plan.md's roundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

F32 = np.float32


@dataclass(frozen=True)
class Bytes:
    """A map of whole numbers q from 0 to 255, each of which stands for scale (q - zero)."""

    q: np.ndarray
    scale: float
    zero: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """Return float32 a b + c, rounded once: the sum is rounded to an odd float64 where it is none."""
    product = np.asarray(a, F32).astype(np.float64) * np.asarray(b, F32).astype(np.float64)
    added = np.asarray(c, F32).astype(np.float64)
    total = np.atleast_1d(product + added)
    with np.errstate(invalid="ignore"):
        back = total - product
        rest = np.nan_to_num((product - (total - back)) + (added - back))
    is_even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
    return np.where((rest != 0) & is_even, odd, total).astype(F32).reshape(np.shape(product + added))


def code(v: np.ndarray, least: float = 0, most: float = 255) -> np.ndarray:
    return np.rint(np.clip(np.where(np.isnan(v), F32(least), v), F32(least), F32(most))).astype(np.int64)


def ends(op: dict[str, Any]) -> tuple[float, float]:
    scale, zero = F32(op["scale"]), op.get("zero", 0)
    if op.get("activation") == "relu6":
        return zero, min(255.0, float(np.rint(6.0 / np.float64(scale))) + zero)
    return (zero if op.get("relu") else 0), 255


def wide(x: Any) -> np.float64:
    return np.float64(F32(x))


def conv(
    op: dict[str, Any], x: Bytes, tensors: dict[str, np.ndarray], residual: Bytes | None, sums: Any
) -> Bytes:
    """`sums` convolves whole numbers."""
    weight = tensors[op["weight"]].astype(np.int64)
    scales = tensors[op["weight_scale"]].astype(np.float64)
    to, zero = wide(op.get("inner_scale", op["scale"])), op.get("inner_zero", 0)
    if "table" not in op:
        zero = op.get("zero", 0)
    total = sums(x.q - x.zero, weight, op)
    bias = tensors[op["bias"]].astype(np.float64) if op.get("bias") else np.zeros(len(weight))
    multiplier = (wide(x.scale) * scales / to).astype(F32)[:, None, None]
    offset, by = bias / to + zero, F32(0)
    if residual is not None:
        by = F32(wide(residual.scale) / to)
        offset = bias / to + (zero - residual.zero * np.float64(by))
    v = fma(total.astype(F32), multiplier, offset.astype(F32)[:, None, None])
    if residual is not None:
        v = fma(residual.q, by, v)
    q = code(v) if "table" in op else code(v, *ends(op))
    if "table" in op:
        q = tensors[op["table"]][q].astype(np.int64)
    return Bytes(q, op["scale"], op.get("zero", 0))


def affine(op: dict[str, Any], x: Bytes, tensors: dict[str, np.ndarray]) -> Bytes:
    weight, bias = (tensors[op[name]].astype(np.float64) for name in ("weight", "bias"))
    to, zero = wide(op["scale"]), op.get("zero", 0)
    multiplier = (wide(x.scale) * weight / to).astype(F32)
    offset = (bias / to + zero - x.zero * multiplier.astype(np.float64)).astype(F32)
    v = fma(x.q, multiplier[:, None, None], offset[:, None, None])
    return Bytes(code(v, *ends(op)), op["scale"], zero)


def add(op: dict[str, Any], a: Bytes, b: Bytes) -> Bytes:
    to, zero = wide(op["scale"]), op.get("zero", 0)
    first, second = F32(wide(a.scale) / to), F32(wide(b.scale) / to)
    offset = F32(zero - a.zero * np.float64(first) - b.zero * np.float64(second))
    return Bytes(code(fma(b.q, second, fma(a.q, first, offset)), *ends(op)), op["scale"], zero)


def scale(op: dict[str, Any], x: Bytes, factors: np.ndarray) -> Bytes:
    ratio = F32(wide(x.scale) / wide(op["scale"]))
    multiplier = factors.astype(F32) * ratio
    offset = fma(F32(-x.zero), multiplier, F32(op.get("zero", 0)))
    v = fma(x.q, multiplier[:, None, None], offset[:, None, None])
    return Bytes(code(v), op["scale"], op.get("zero", 0))


def quantize(op: dict[str, Any], x: Any) -> Bytes:
    to, zero = wide(op["scale"]), op.get("zero", 0)
    if not isinstance(x, Bytes):
        return Bytes(code(fma(x.astype(F32), F32(1 / to), F32(zero))), op["scale"], zero)
    multiplier = F32(wide(x.scale) / to)
    return Bytes(code(fma(x.q, multiplier, F32(zero - x.zero * np.float64(multiplier)))), op["scale"], zero)


def dequantize(x: Bytes) -> np.ndarray:
    return ((x.q - x.zero).astype(F32) * F32(x.scale)).astype(np.float64)


def gap(x: Bytes) -> np.ndarray:
    pixels, by = x.q[0].size, wide(x.scale)
    sums = x.q.sum(axis=(1, 2)).astype(F32)
    return fma(sums, F32(by / pixels), F32(-(x.zero * by))).astype(np.float64)


def linear(op: dict[str, Any], x: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    by, zero = wide(op["in_scale"]), op.get("in_zero", 0)
    q = code(fma(x.astype(F32), F32(1 / by), F32(zero)))
    total = tensors[op["weight"]].astype(np.int64) @ (q - zero)
    multiplier = (by * tensors[op["weight_scale"]].astype(np.float64)).astype(F32)
    bias = tensors[op["bias"]] if op.get("bias") else F32(0)
    return fma(total.astype(F32), multiplier, bias).astype(np.float64)


def mean(x: Bytes, sums: np.ndarray, counts: np.ndarray) -> Bytes:
    """Return rounded means of sums of so many bytes."""
    share = (F32(1) / counts.astype(F32)).astype(F32)
    return Bytes(code(sums.astype(F32) * share), x.scale, x.zero)
