"""Plans run by slow, literal NumPy, one image at a time: what the engine must agree with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sidestep_engine import Plan

Values = dict[int, np.ndarray]


def run(plan: Plan, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, options and exits of (B, C, H, W) normalised images."""
    results = [_image(plan, image.astype(np.float64)) for image in images]
    scores, options, exits = zip(*results, strict=True)
    return np.stack(scores), np.array(options).reshape(len(images), -1), np.array(exits)


def _image(plan: Plan, image: np.ndarray) -> tuple[np.ndarray, list[int], int]:
    values: Values = {0: image}
    options = [-1] * sum("choose" in step for step in plan.steps)
    exits = choices = 0
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
        elif _leaves(step["exit"], values):
            return values[step["exit"]["logits"]], options, exits
        else:
            exits += 1
    return values[plan.output], options, exits


def _leaves(exit: dict[str, Any], values: Values) -> bool:
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
        values[op["out"]] = _op(plan, op, inputs, values)


def _op(plan: Plan, op: dict[str, Any], inputs: list[np.ndarray], values: Values) -> np.ndarray:
    weight = plan.tensors[op["weight"]].astype(np.float64) if op.get("weight") else np.empty(0)
    bias = plan.tensors[op["bias"]].astype(np.float64) if op.get("bias") else np.zeros(1)
    residual = 0 if op.get("residual") is None else values[op["residual"]]
    if op["op"] == "resize":
        return _resize(op, inputs[0], values[op["like"]] if "like" in op else None)
    out: np.ndarray = KINDS[op["op"]](op, inputs, weight, bias) + residual
    return _leaky(out, op) if op.get("relu") or op["op"] == "relu" else out


def _leaky(x: np.ndarray, op: dict[str, Any]) -> np.ndarray:
    return np.where(x > 0, x, op.get("slope", 0.0) * x)


def _map(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return _leaky(x, op) if op["function"] == "relu" else _FUNCTIONS[op["function"]](x)


def _pad(op: dict[str, Any], x: np.ndarray) -> np.ndarray:
    part = x[:, :: op["stride"], :: op["stride"]]
    return np.pad(part, ((op["before"], op["after"]), (0, 0), (0, 0)))


_FUNCTIONS = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "sqrt": np.sqrt, "exp": np.exp}


def _resize(op: dict[str, Any], x: np.ndarray, like: np.ndarray | None) -> np.ndarray:
    height, width = op["size"] if like is None else like.shape[1:]
    for axis, size in ((1, height), (2, width)):
        at, old = np.arange(size), x.shape[axis]
        place = at * (old - 1) / max(size - 1, 1) if op["align_corners"] else (at + 0.5) * old / size - 0.5
        low = np.floor(np.maximum(place, 0)).astype(int)
        share = np.maximum(place, 0) - low
        share = share.reshape(-1, 1) if axis == 1 else share
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, old - 1), axis) * share
    return x


def _conv(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    kernel, inputs, outputs = weight.shape[2], weight.shape[1], weight.shape[0] // groups
    windows = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    parts = [
        np.einsum(
            "ihwyx,oiyx->ohw", windows[g * inputs : (g + 1) * inputs], weight[g * outputs : (g + 1) * outputs]
        )
        for g in range(groups)
    ]
    return np.concatenate(parts)


def _pool(x: np.ndarray, op: dict[str, Any]) -> np.ndarray:
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
    reduce = np.max if largest else np.mean
    rows = [[reduce(x[:, t:b, left:r], axis=(1, 2)) for left, r in sides[1]] for t, b in sides[0]]
    return np.array(rows).transpose(2, 0, 1)


# Every kind: of its op, inputs, weight and bias; residual and ReLU are applied to all.
KINDS: dict[str, Callable[[Any, list[np.ndarray], np.ndarray, np.ndarray], Any]] = {
    "conv": lambda op, x, w, b: (
        _conv(x[0], w, op["stride"], op["padding"], op.get("groups", 1)) + b.reshape(-1, 1, 1)
    ),
    "max_pool": lambda op, x, w, b: _pool(x[0], op),
    "avg_pool": lambda op, x, w, b: _pool(x[0], op),
    "pad": lambda op, x, w, b: _pad(op, x[0]),
    "affine": lambda op, x, w, b: x[0] * w[:, None, None] + b.reshape(-1, 1, 1),
    "add": lambda op, x, w, b: x[0] + x[1],
    "scale": lambda op, x, w, b: x[0] * x[1][:, None, None],
    "relu": lambda op, x, w, b: x[0],
    "concat": lambda op, x, w, b: np.concatenate(x),
    "gap": lambda op, x, w, b: x[0].mean(axis=(1, 2)),
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
    "vsum": lambda op, x, w, b: x[0].sum(keepdims=True),
}
