"""Plans run by slow, literal NumPy, one image at a time: what the engine must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import literal_bytes
import numpy as np
from literal_bytes import Bytes
from numpy.lib.stride_tricks import sliding_window_view
from sidestep_engine import Plan

Values = dict[int, Any]  # arrays, and Bytes


def run(plan: Plan, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, options and exits of (B, C, H, W) normalised images."""
    results = [_image(plan, image.astype(np.float64)) for image in images]
    scores, options, exits = zip(*results, strict=True)
    return np.stack(scores), np.array(options).reshape(len(images), -1), np.array(exits)


def _image(plan: Plan, image: np.ndarray) -> tuple[np.ndarray, list[int], int]:
    values: Values = {0: image}
    options = [-1] * sum("choose" in step for step in plan.steps)
    named: list[int] = []
    choices = 0
    for step in plan.steps:
        if "ops" in step:
            _ops(plan, step["ops"], values)
        elif "choose" in step:
            option = int(np.argmax(values[step["choose"]]))
            inside = dict(values)
            _ops(plan, step["options"][option]["ops"], inside)
            for name, result in zip(step["defines"], step["options"][option]["results"], strict=True):
                values[name] = inside[result]
            options[choices] = option
            choices += 1
        else:
            named.append(int(np.argmax(values[step["exit"]["logits"]])))
            if _leaves(step["exit"], values, named):
                return values[step["exit"]["logits"]], options, len(named) - 1
    return values[plan.output], options, len(named)


def _leaves(exit: dict[str, Any], values: Values, named: list[int]) -> bool:
    if exit["criterion"] == "agreement":
        return float(named.count(named[-1]) > 1) >= exit["threshold"]
    if exit["criterion"] == "patience":
        return len(list(takewhile(named[-1].__eq__, reversed(named)))) >= exit["threshold"]
    z = values[exit["logits"]] / exit["temperature"]
    p = np.exp(z - z.max())
    p /= p.sum()
    if exit["criterion"] == "entropy":
        return bool(-(p * np.log(p)).sum() <= exit["threshold"])
    ordered = np.sort(p)
    score = ordered[-1] if exit["criterion"] == "confidence" else ordered[-1] - ordered[-2]
    return bool(score >= exit["threshold"])


def _ops(plan: Plan, ops: list[dict[str, Any]], values: Values) -> None:
    for op in ops:
        names = op.get("in", [])
        inputs = [values[name] for name in (names if isinstance(names, list) else [names])]
        reads_bytes = any(isinstance(x, Bytes) for x in inputs)
        if reads_bytes or op["op"] == "quantize" or "in_scale" in op:
            values[op["out"]] = _byte_op(plan, op, inputs, values)
        else:
            values[op["out"]] = _op(plan, op, inputs, values)


def _byte_op(plan: Plan, op: dict[str, Any], inputs: list[Any], values: Values) -> Any:
    if op["op"] in BYTE_KINDS:
        return BYTE_KINDS[op["op"]](op, inputs, plan.tensors, values)
    # What only moves bytes moves zeros as zero points.
    zero = inputs[0].zero
    moved = KINDS[op["op"]](op, [part.q - zero for part in inputs], np.empty(0), np.zeros(1))
    return Bytes(moved + zero, inputs[0].scale, zero)


def _op(plan: Plan, op: dict[str, Any], inputs: list[np.ndarray], values: Values) -> np.ndarray:
    weight = plan.tensors[op["weight"]].astype(np.float64) if op.get("weight") else np.empty(0)
    if op.get("weight_scale"):
        weight = weight * plan.tensors[op["weight_scale"]].reshape(-1, *[1] * (weight.ndim - 1))
    bias = plan.tensors[op["bias"]].astype(np.float64) if op.get("bias") else np.zeros(1)
    residual = 0 if op.get("residual") is None else values[op["residual"]]
    if op["op"] == "resize":
        return _resize(op, inputs[0], values[op["like"]] if "like" in op else None)
    out: np.ndarray = KINDS[op["op"]](op, inputs, weight, bias) + residual
    if op.get("activation"):
        return _FUNCTIONS[op["activation"]](out)
    return _leaky(out, op) if op.get("relu") or op["op"] == "relu" else out


def _leaky(x: np.ndarray, op: dict[str, Any]) -> np.ndarray:
    return np.where(x > 0, x, op.get("slope", 0.0) * x)


def _map(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return _leaky(x, op) if op["function"] == "relu" else _FUNCTIONS[op["function"]](x)


def _pad(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    part = x[:, :: op["stride"], :: op["stride"]]
    return np.pad(part, ((op["before"], op["after"]), (0, 0), (0, 0)))


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    **{name: getattr(np, name) for name in ("tanh", "sqrt", "exp", "log")},
}


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    near, far = (1.5 * abs(x) - 2.5) * x**2 + 1, ((2.5 - 0.5 * abs(x)) * abs(x) - 4) * abs(x) + 2
    return np.where(abs(x) < 1, near, np.where(abs(x) < 2, far, 0))


def _smooth(op: dict[str, Any], size: int, old: int) -> np.ndarray:
    """Return the (size, old) matrix that resizes one side with antialiasing."""
    shape, reach = (_cubic, 2.0) if op.get("interpolation") == "bicubic" else (_triangle, 1.0)
    wide = max(old / size, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * old / size
    distance = (np.arange(old)[None] + 0.5 - centre) / wide
    weight = np.where(abs(distance) < reach, shape(distance), 0)
    return weight / weight.sum(axis=1, keepdims=True)


def _crop(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    (height, width), (_, rows, columns) = op["size"], x.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    return x[:, top : top + height, left : left + width]


def _rows_of(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    first, rows = op.get("first", 0), op.get("rows", 0)
    return x[:, first : first + rows if rows else None]


def _layer_norm(op: dict[str, Any], x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + op["eps"])
    return normal * weight[:, None, None] + bias[:, None, None]


def _tokens(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    rows = weight.copy()
    rows[len(rows) - x[0].size :] += x.reshape(len(x), -1).T
    return rows.T[:, :, None]


def _attention(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Return softmax(q k^T / sqrt(d)) v of every head."""
    outs = []
    heads = x.reshape(3, op["heads"], -1, x[0].size)  # (part, head, entry, pixel)
    for query, key, value in heads.transpose(1, 0, 2, 3):
        scores = query.T @ key / math.sqrt(len(query))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        outs.append(value @ (powers / powers.sum(axis=1, keepdims=True)).T)
    return np.concatenate(outs).reshape(-1, *x.shape[1:])


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    return shifted - np.log(np.exp(shifted).sum())


def _resize(op: dict[str, Any], x: np.ndarray, like: Any) -> np.ndarray:
    height, width = op["size"] if like is None else like.shape[1:]
    if op.get("antialias"):
        return np.einsum("yh,chw,xw->cyx", _smooth(op, height, x.shape[1]), x, _smooth(op, width, x.shape[2]))
    for axis, size in ((1, height), (2, width)):
        at, old = np.arange(size), x.shape[axis]
        place = at * (old - 1) / max(size - 1, 1) if op["align_corners"] else (at + 0.5) * old / size - 0.5
        low = np.floor(np.maximum(place, 0)).astype(int)
        share = np.maximum(place, 0) - low
        share = share.reshape(-1, 1) if axis == 1 else share
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, old - 1), axis) * share
    return x


def _conv(x: np.ndarray, weight: np.ndarray, op: dict[str, Any]) -> np.ndarray:
    stride, padding, groups = op["stride"], op.get("padding", 0), op.get("groups", 1)
    sides = [(padding, padding)] * 2
    if op.get("same"):
        totals = [max((-(-n // stride) - 1) * stride + weight.shape[2] - n, 0) for n in x.shape[1:]]
        sides = [(total // 2, total - total // 2) for total in totals]
    x = np.pad(x, ((0, 0), *sides))
    kernel, inputs, outputs = weight.shape[2], weight.shape[1], weight.shape[0] // groups
    windows = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    parts = [
        np.einsum(
            "ihwyx,oiyx->ohw", windows[g * inputs : (g + 1) * inputs], weight[g * outputs : (g + 1) * outputs]
        )
        for g in range(groups)
    ]
    return np.concatenate(parts)


def _pool(x: np.ndarray, op: dict[str, Any], reduce: Any = None) -> np.ndarray:
    kernel, stride = op["kernel"], op["stride"]
    padding, largest = (op.get("padding", 0), True) if op["op"] == "max_pool" else (0, False)
    sides = []
    for size in x.shape[1:]:
        count = (size + 2 * padding - kernel) // stride + 1
        if op.get("ceil"):
            count = -(-max(size - kernel, 0) // stride) + 1
            count -= (count - 1) * stride >= size
        sides.append(
            [(max(i * stride - padding, 0), min(i * stride - padding + kernel, size)) for i in range(count)]
        )
    reduce = reduce or (np.max if largest else np.mean)
    rows = [[reduce(x[:, t:b, left:r], axis=(1, 2)) for left, r in sides[1]] for t, b in sides[0]]
    return np.array(rows).transpose(2, 0, 1)


# Every kind: of its op, inputs, weight and bias; residual and ReLU are applied to all.
KINDS: dict[str, Callable[[Any, list[np.ndarray], np.ndarray, np.ndarray], Any]] = {
    "conv": lambda op, x, w, b: _conv(x[0], w, op) + b.reshape(-1, 1, 1),
    "max_pool": lambda op, x, w, b: _pool(x[0], op),
    "avg_pool": lambda op, x, w, b: _pool(x[0], op),
    "pad": lambda op, x, w, b: _pad(op, x[0]),
    "affine": lambda op, x, w, b: x[0] * w[:, None, None] + b.reshape(-1, 1, 1),
    "add": lambda op, x, w, b: x[0] + x[1],
    "scale": lambda op, x, w, b: x[0] * x[1][:, None, None],
    "relu": lambda op, x, w, b: x[0],
    "activate": lambda op, x, w, b: _FUNCTIONS[op["function"]](x[0]),
    "crop": lambda op, x, w, b: _crop(op, x[0]),
    "concat": lambda op, x, w, b: np.concatenate(x),
    "gap": lambda op, x, w, b: _rows_of(op, x[0]).mean(axis=(1, 2)),
    "layer_norm": lambda op, x, w, b: _layer_norm(op, x[0], w, b),
    "tokens": lambda op, x, w, b: _tokens(x[0], w),
    "attention": lambda op, x, w, b: _attention(op, x[0]),
    "flatten": lambda op, x, w, b: x[0].reshape(-1),
    "linear": lambda op, x, w, b: w @ x[0] + b,
    "vconst": lambda op, x, w, b: w,
    "vgather": lambda op, x, w, b: np.concatenate(x)[op["indices"]],
    "vadd": lambda op, x, w, b: x[0] + op.get("alpha", 1.0) * x[1],
    "vmul": lambda op, x, w, b: x[0] * x[1],
    "vdiv": lambda op, x, w, b: x[0] / x[1],
    "vaffine": lambda op, x, w, b: x[0] * op["mul"] + op["add"],
    "vmap": lambda op, x, w, b: _map(op, x[0]),
    "vclamp_min": lambda op, x, w, b: np.maximum(x[0], op["min"]),
    "vlog_softmax": lambda op, x, w, b: _log_softmax(x[0]),
    "vlogaddexp": lambda op, x, w, b: np.logaddexp(x[0], x[1]),
    "vsum": lambda op, x, w, b: x[0].sum(keepdims=True),
}


def _linear8(op: dict[str, Any], x: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    out = literal_bytes.linear(op, x, tensors)
    return _leaky(out, op) if op.get("relu") else out


# Every kind that does more with bytes than to move them: of its op, inputs, tensors and values.
BYTE_KINDS: dict[str, Callable[[Any, list[Any], dict[str, np.ndarray], Values], Any]] = {
    "conv": lambda op, x, t, v: literal_bytes.conv(op, x[0], t, v.get(op.get("residual")), _conv),
    "affine": lambda op, x, t, v: literal_bytes.affine(op, x[0], t),
    "linear": lambda op, x, t, v: _linear8(op, x[0], t),
    "add": lambda op, x, t, v: literal_bytes.add(op, *x),
    "scale": lambda op, x, t, v: literal_bytes.scale(op, *x),
    "quantize": lambda op, x, t, v: literal_bytes.quantize(op, x[0]),
    "dequantize": lambda op, x, t, v: literal_bytes.dequantize(x[0]),
    "gap": lambda op, x, t, v: literal_bytes.gap(x[0]),
    "flatten": lambda op, x, t, v: literal_bytes.dequantize(x[0]).reshape(-1),
    "activate": lambda op, x, t, v: Bytes(t[op["table"]][x[0].q].astype(int), op["scale"], op.get("zero", 0)),
    "avg_pool": lambda op, x, t, v: literal_bytes.mean(
        x[0], _pool(x[0].q, op, np.sum), _pool(np.ones_like(x[0].q), op, np.sum)
    ),
    "relu": lambda op, x, t, v: Bytes(np.maximum(x[0].q, x[0].zero), x[0].scale, x[0].zero),
    "resize": lambda op, x, t, v: Bytes(
        np.rint(_resize(op, x[0].q, v.get(op.get("like")))).astype(int), x[0].scale, x[0].zero
    ),
}
