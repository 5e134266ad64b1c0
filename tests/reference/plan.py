"""The slow, literal reading of docs/plan.md: one image, one operation after the other."""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from tests.reference.byte_plan import WEIGHTS, Bytes, run_on_bytes


def read_plan(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["sidestep_plan"])
        return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def run_plan(
    document: dict[str, Any], tensors: dict[str, Tensor], image: Tensor
) -> tuple[Tensor, list[int], int | None]:
    """Return logits, the option of every unit that was reached, and the exit, for one (3, H, W) image."""
    values: dict[int, Any] = {0: image}
    decisions: list[int] = []
    named: list[int] = []
    for step in document["steps"]:
        if "ops" in step:
            _run_ops(step["ops"], values, tensors)
        elif "choose" in step:
            logits = values[step["choose"]]
            assert logits.dim() == 1
            decisions.append(logits.tolist().index(logits.max().item()))
            option = step["options"][decisions[-1]]
            inside = dict(values)
            _run_ops(option["ops"], inside, tensors)
            for defined, result in zip(step["defines"], option["results"], strict=True):
                assert defined not in values
                values[defined] = inside[result]
        else:
            named.append(int(values[step["exit"]["logits"]].argmax()))
            if _leaves(step["exit"], values, named):
                return values[step["exit"]["logits"]], decisions, len(named) - 1
    return values[document["output"]], decisions, len(named)


def _leaves(step: dict[str, Any], values: dict[int, Any], named: list[int]) -> bool:
    if step["criterion"] == "agreement":
        return (named.count(named[-1]) >= 2) >= step["threshold"]
    if step["criterion"] == "patience":
        return len(list(takewhile(lambda name: name == named[-1], reversed(named)))) >= step["threshold"]
    probabilities = (values[step["logits"]].double() / step["temperature"]).softmax(dim=0)
    largest = probabilities.sort(descending=True).values
    if step["criterion"] == "confidence":
        return bool(largest[0] >= step["threshold"])
    if step["criterion"] == "margin":
        return bool(largest[0] - largest[1] >= step["threshold"])
    assert step["criterion"] == "entropy"
    return bool(-torch.special.xlogy(probabilities, probabilities).sum() <= step["threshold"])


def _run_ops(ops: list[dict[str, Any]], values: dict[int, Any], tensors: dict[str, Tensor]) -> None:
    for op in ops:
        read = op.get("in", [])
        inputs = [values[value] for value in ([read] if isinstance(read, int) else read)]
        weights = {key: tensors[op[key]] for key in WEIGHTS if op.get(key) is not None}
        weights |= {key: values[op[key]] for key in ("residual", "like") if op.get(key) is not None}
        assert op["out"] not in values
        if op["op"] == "quantize" or "in_scale" in op or any(isinstance(x, Bytes) for x in inputs):
            values[op["out"]] = run_on_bytes(op, *inputs, **weights)
            continue
        if "weight_scale" in weights:
            scale = weights.pop("weight_scale")
            weights["weight"] = weights["weight"] * scale.view(-1, *[1] * (weights["weight"].dim() - 1))
        out = _OPS[op["op"]](op, *inputs, **weights)
        assert out.dtype == torch.float32
        assert not (op.get("relu") and op.get("activation"))
        out = _FUNCTIONS[op["activation"]](out) if op.get("activation") else out
        values[op["out"]] = _rectified(op, out) if op.get("relu") else out


def _rectified(op: dict[str, Any], x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * op.get("slope", 0.0))


def _conv(
    op: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    if op.get("same"):
        kernel, stride = weight.shape[2], op["stride"]
        totals = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[1:]]
        x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
    out = F.conv2d(x[None], weight, bias, op["stride"], op["padding"], groups=op["groups"])[0]
    return out if residual is None else out + residual


def _avg_pool(op: dict[str, Any], x: Tensor) -> Tensor:
    kernel, stride = op["kernel"], op["stride"]
    rounded = math.ceil if op["ceil"] else math.floor
    height, width = (rounded((size - kernel) / stride) + 1 for size in x.shape[1:])
    rows = []
    for top in range(0, height * stride, stride):
        squares = [
            x[:, top : top + kernel, left : left + kernel] for left in range(0, width * stride, stride)
        ]
        rows.append(torch.stack([square.mean((1, 2)) for square in squares], dim=1))
    return torch.stack(rows, dim=1)


def _pad(op: dict[str, Any], x: Tensor) -> Tensor:
    taken = x[:, :: op["stride"], :: op["stride"]]
    before, after = (taken.new_zeros(op[side], *taken.shape[1:]) for side in ("before", "after"))
    return torch.cat([before, taken, after])


def _resize(op: dict[str, Any], x: Tensor, like: Tensor | None = None) -> Tensor:
    size = op["size"] if like is None else list(like.shape[1:])
    if op.get("antialias"):
        mode = op["interpolation"]
        return F.interpolate(x[None], size, mode=mode, align_corners=False, antialias=True)[0]
    return F.interpolate(x[None], size, mode="bilinear", align_corners=op["align_corners"])[0]


def _crop(op: dict[str, Any], x: Tensor) -> Tensor:
    (height, width), (_, rows, columns) = op["size"], x.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    return x[:, top : top + height, left : left + width]


def _gap(op: dict[str, Any], x: Tensor) -> Tensor:
    first, rows = op.get("first", 0), op.get("rows", 0)
    return x[:, first : first + (rows or len(x[0]))].mean((1, 2))


def _layer_norm(op: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    normal = (x - x.mean(0)) / (x.var(0, correction=0) + op["eps"]).sqrt()
    return normal * weight[:, None, None] + bias[:, None, None]


def _tokens(op: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    rows = weight.clone()
    for place, pixel in enumerate(x.flatten(1).T, start=len(weight) - x[0].numel()):
        rows[place] += pixel
    return rows.T[:, :, None]


def _attention(op: dict[str, Any], x: Tensor) -> Tensor:
    outs = []
    queries, keys, values = x.flatten(1).chunk(3)
    for q, k, v in zip(*(part.chunk(op["heads"]) for part in (queries, keys, values)), strict=True):
        outs.append(v @ (q.T @ k / len(q) ** 0.5).softmax(dim=1).T)
    return torch.cat(outs).view(-1, *x.shape[1:])


def _vmap(op: dict[str, Any], x: Tensor) -> Tensor:
    if op["function"] == "relu":
        return _rectified(op, x)
    return _FUNCTIONS[op["function"]](x)


_FUNCTIONS: dict[str, Any] = {
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "sqrt", "exp", "log")},
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu6": lambda x: x.clamp(0, 6),
    "hard_swish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hard_sigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
}
_OPS: dict[str, Any] = {
    "conv": _conv,
    "max_pool": lambda op, x: F.max_pool2d(x, op["kernel"], op["stride"], op["padding"]),
    "avg_pool": _avg_pool,
    "pad": _pad,
    "affine": lambda op, x, weight, bias: x * weight[:, None, None] + bias[:, None, None],
    "add": lambda op, a, b: a + b,
    "scale": lambda op, x, factor: x * factor[:, None, None],
    "relu": _rectified,
    "activate": lambda op, x: _FUNCTIONS[op["function"]](x),
    "crop": _crop,
    "concat": lambda op, *parts: torch.cat(parts),
    "resize": _resize,
    "gap": _gap,
    "layer_norm": _layer_norm,
    "tokens": _tokens,
    "attention": _attention,
    "linear": lambda op, x, weight, bias=0: weight @ x + bias,
    "vconst": lambda op, weight: weight,
    "vgather": lambda op, *parts: torch.cat(parts)[op["indices"]],
    "vadd": lambda op, a, b: a + op["alpha"] * b,
    "vmul": lambda op, a, b: a * b,
    "vdiv": lambda op, a, b: a / b,
    "vaffine": lambda op, x: x * op["mul"] + op["add"],
    "vmap": _vmap,
    "vclamp_min": lambda op, x: x.clamp_min(op["min"]),
    "vsum": lambda op, x: x.sum(dim=0, keepdim=True),
    "vlog_softmax": lambda op, x: x - x.exp().sum().log(),
    "vlogaddexp": lambda op, a, b: (a.exp() + b.exp()).log(),
    "flatten": lambda op, x: x.flatten(),
}
