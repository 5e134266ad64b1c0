"""What a plan's operations are in PyTorch, for a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.plan.format import Op, stands_for_real
from sidestep.targets.map_shapes import Shape, rows_of

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
}


def run_op(
    op: Op,
    values: Mapping[int, Tensor],
    weights: Mapping[str, Tensor],
    shapes: Mapping[int, Shape],
    count: int,
) -> Tensor:
    """Return what an operation computes.

    Args:
        op: of a plan, or of a segment's decision.
        values: (B, ...) that are known; constants may have a batch of 1.
        weights: of the plan, by name.
        shapes: of all values, without the batch.
        count: B.
    """
    read = op.get("in", [])
    given = [values[value] for value in ([read] if isinstance(read, int) else read)]
    named = [weights[op[field]] for field in ("weight", "bias") if op.get(field) is not None]
    if stands_for_real(op):
        named[0] = named[0] * weights[op["weight_scale"]].view(-1, *[1] * (named[0].dim() - 1))
    if op["op"] in ("vgather", "concat"):
        given = [each.expand(count, *each.shape[1:]) for each in given]
    out = _OPS[op["op"]](op, given, named, shapes)
    if op.get("residual") is not None:
        out = out + values[op["residual"]]
    return out if op["op"] in ("relu", "activate", "vmap") else ended(op, out)


def ended(op: Op, out: Tensor) -> Tensor:
    """Return what an operation makes of numbers at its end: a ReLU, an activation, or nothing."""
    if op.get("relu"):
        return _relu(op, [out])
    return _FUNCTIONS[op["activation"]](out) if op.get("activation") else out


def _relu(op: Op, given: Sequence[Tensor], *rest: Any) -> Tensor:
    return F.leaky_relu(given[0], op["slope"]) if op.get("slope") else F.relu(given[0])


def _mapped(op: Op, given: Sequence[Tensor], *rest: Any) -> Tensor:
    return _relu(op, given) if op["function"] == "relu" else _FUNCTIONS[op["function"]](given[0])


def _conv(op: Op, given: Sequence[Tensor], named: Sequence[Tensor], shapes: Mapping[int, Shape]) -> Tensor:
    (x,), (weight, *bias) = given, named
    if op.get("same"):
        sides = zip(shapes[op["in"]][1:], weight.shape[2:], strict=True)
        over = [
            max((rows_of(op, side, kernel) - 1) * op["stride"] + kernel - side, 0) for side, kernel in sides
        ]
        x = F.pad(x, [part for total in reversed(over) for part in (total // 2, total - total // 2)])
    return F.conv2d(x, weight, bias[0] if bias else None, op["stride"], op["padding"], groups=op["groups"])


def _pad(op: Op, given: Sequence[Tensor], *rest: Any) -> Tensor:
    taken = given[0][:, :, :: op["stride"], :: op["stride"]]
    return F.pad(taken, [0, 0, 0, 0, op["before"], op["after"]])


def _crop(op: Op, given: Sequence[Tensor], named: Any, shapes: Mapping[int, Shape]) -> Tensor:
    (height, width), (_, rows, columns) = op["size"], shapes[op["in"]]
    top, left = (rows - height) // 2, (columns - width) // 2
    return given[0][:, :, top : top + height, left : left + width]


def _resize(op: Op, given: Sequence[Tensor], named: Any, shapes: Mapping[int, Shape]) -> Tensor:
    size = list(shapes[op["out"]][1:])
    if op.get("antialias"):
        return F.interpolate(given[0], size, mode=op["interpolation"], align_corners=False, antialias=True)
    return F.interpolate(given[0], size, mode="bilinear", align_corners=bool(op.get("align_corners")))


def _affine(op: Op, given: Sequence[Tensor], named: Sequence[Tensor], shapes: Any) -> Tensor:
    factor, shift = (each.view(1, -1, 1, 1) for each in named)
    return given[0] * factor + shift


def _gap(op: Op, given: Sequence[Tensor], *rest: Any) -> Tensor:
    first, (x,) = op.get("first", 0), given
    return x[:, :, first : first + op["rows"] if op.get("rows") else None].mean((2, 3))


def _layer_norm(op: Op, given: Sequence[Tensor], named: Sequence[Tensor], *rest: Any) -> Tensor:
    pixels = given[0].permute(0, 2, 3, 1)
    weight, bias = named
    return F.layer_norm(pixels, pixels.shape[-1:], weight, bias, op["eps"]).permute(0, 3, 1, 2)


def _tokens(op: Op, given: Sequence[Tensor], named: Sequence[Tensor], *rest: Any) -> Tensor:
    pixels, (weight,) = given[0].flatten(2), named
    in_front = F.pad(pixels, [len(weight) - pixels.shape[2], 0])
    return (in_front + weight.T).unsqueeze(3)


def _attention(op: Op, given: Sequence[Tensor], *rest: Any) -> Tensor:
    (x,), heads = given, op["heads"]
    batch, channels, *sides = x.shape
    by_heads = x.view(batch, 3, heads, channels // 3 // heads, -1).transpose(3, 4)
    query, key, value = by_heads.unbind(1)
    out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(2, 3).reshape(batch, channels // 3, *sides)


def doubt_of(criterion: str, temperature: float, given: Sequence[Tensor]) -> Tensor:
    """Return (B,) how uncertain an exit is, as docs/segments.md says.

    Args:
        criterion: of the exit.
        temperature: by which logits are divided first.
        given: its (B, C) logits, or the (B, 1) classes that all exits so far have named.
    """
    if criterion in ("patience", "agreement"):
        return -_count(criterion, given)
    ordered = (given[0].double() / temperature).sort(dim=1, descending=True).values
    behind = ordered[:, 1:] - ordered[:, :1]
    powers = behind.exp()
    rest_of: Tensor = powers.sum(dim=1)
    if criterion == "confidence":
        doubt = rest_of
    elif criterion == "margin":
        doubt = (rest_of + powers[:, 0]) / (1 + rest_of)
    else:
        doubt = torch.log1p(rest_of) - (behind * powers).sum(dim=1) / (1 + rest_of)
    return doubt.float()


def _count(criterion: str, labels: Sequence[Tensor]) -> Tensor:
    same = [(each == labels[-1]).float()[:, 0] for each in labels]
    if criterion == "agreement":
        return (torch.stack(same).sum(dim=0) >= 2).float()
    return torch.stack(same[::-1]).cumprod(dim=0).sum(dim=0)


def _with(function: Callable[..., Tensor], *fields: str) -> Callable[..., Tensor]:
    """Return an operation that is a function of what it reads and of some fields."""
    return lambda op, given, *rest: function(*given, *(op[field] for field in fields))


_OPS: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "max_pool": _with(F.max_pool2d, "kernel", "stride", "padding"),
    "avg_pool": lambda op, given, *rest: F.avg_pool2d(
        given[0], op["kernel"], op["stride"], ceil_mode=bool(op["ceil"])
    ),
    "pad": _pad,
    "crop": _crop,
    "affine": _affine,
    "add": _with(torch.add),
    "scale": _with(lambda x, factor: x * factor[:, :, None, None]),
    "relu": _relu,
    "activate": _mapped,
    "concat": lambda op, given, *rest: torch.cat(given, dim=1),
    "resize": _resize,
    "gap": _gap,
    "layer_norm": _layer_norm,
    "tokens": _tokens,
    "attention": _attention,
    "flatten": _with(partial(torch.flatten, start_dim=1)),
    "linear": lambda op, given, named, *rest: F.linear(given[0], *named),
    "vconst": lambda op, given, named, *rest: named[0].view(1, -1),
    "vgather": lambda op, given, *rest: torch.cat(given, dim=1)[:, op["indices"]],
    "vadd": _with(lambda a, b, alpha: a + alpha * b, "alpha"),
    "vmul": _with(torch.mul),
    "vdiv": _with(torch.div),
    "vaffine": _with(lambda x, mul, add: x * mul + add, "mul", "add"),
    "vmap": _mapped,
    "vclamp_min": _with(torch.clamp_min, "min"),
    "vsum": _with(lambda x: x.sum(dim=1, keepdim=True)),
    "vlog_softmax": _with(lambda x: x.log_softmax(dim=1)),
    "vlogaddexp": _with(torch.logaddexp),
    "choice": _with(lambda x: x.argmax(dim=1)),
    "doubt": lambda op, given, *rest: doubt_of(op["criterion"], op["temperature"], given),
    "label": _with(lambda x: x.argmax(dim=1, keepdim=True).float()),
}
