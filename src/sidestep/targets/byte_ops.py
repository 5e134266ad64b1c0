"""What a plan's operations on bytes are in PyTorch: the integers of docs/plan.md, for a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sidestep.plan.byte_maps import Grid, code, fma, single
from sidestep.plan.format import Op, inputs_of
from sidestep.targets.map_shapes import Shape, rows_of
from sidestep.targets.torch_ops import ended, run_op

# Sums of products below this are exact in float32, in whatever order they are taken.
_EXACT = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an operation on bytes may look at.

    Attributes:
        values: (B, ...) that are known, uint8 where they are bytes.
        weights: of the plan, by name.
        shapes: of all values, without the batch.
        grids: of the values that are bytes.
    """

    values: Mapping[int, Tensor]
    weights: Mapping[str, Tensor]
    shapes: Mapping[int, Shape]
    grids: Mapping[int, Grid]

    def codes(self, value: int) -> Tensor:
        """Return bytes as float32 numbers in [0, 255]."""
        return self.values[value].float()


def runs_on_bytes(op: Op, grids: Mapping[int, Grid]) -> bool:
    """Return whether an operation reads or makes bytes, or makes bytes of what it reads."""
    return bool(op.get("in_scale")) or any(value in grids for value in (op["out"], *inputs_of(op)))


def run_byte_op(op: Op, known: Known) -> Tensor:
    """Return what an operation computes that `runs_on_bytes`."""
    return _OPS[op["op"]](op, known)


def _limits(op: Op, grid: Grid) -> tuple[float, float]:
    """Return the bytes between which an operation ends."""
    if op.get("activation") == "relu6":
        top = torch.tensor(6.0, dtype=torch.float64) / grid.scale
        return grid.zero, min(255.0, top.round().item() + grid.zero)
    return (grid.zero if op.get("relu") else 0), 255


def _f64(x: float | Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def _spread(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _conv(op: Op, known: Known) -> Tensor:
    here, made = known.grids[op["in"]], known.grids[op["out"]]
    grid = Grid(op["inner_scale"], op.get("inner_zero", 0)) if "table" in op else made
    weight = known.weights[op["weight"]]
    padding = padding_of(op, known.shapes[op["in"]], weight.shape[2:])
    sums = _sums(op, known.values[op["in"]], weight, padding, here.zero)
    factors = _f64(here.scale) * _f64(known.weights[op["weight_scale"]]) / grid.scale
    bias = _f64(known.weights[op["bias"]]) if op.get("bias") is not None else _f64(0.0).expand(len(weight))
    shift, residual = bias / grid.scale + grid.zero, op.get("residual")
    if residual is not None:
        other = known.grids[residual]
        step = single(_f64(other.scale) / grid.scale)
        shift = shift - other.zero * (_f64(other.scale) / grid.scale)
    out = fma(sums, _spread(single(factors)), _spread(single(shift)))
    if residual is not None:
        out = fma(known.codes(residual), step, out)
    if "table" in op:
        return _looked_up(known.weights[op["table"]], code(out))
    return code(out, *_limits(op, grid))


def padding_of(op: Op, shape: Shape, kernel: Sequence[int]) -> list[int]:
    """Return what a convolution pads a map by, as `F.pad` takes it."""
    if not op.get("same"):
        return [op["padding"]] * 4
    sides = zip(shape[1:], kernel, strict=True)
    over = [max((rows_of(op, side, each) - 1) * op["stride"] + each - side, 0) for side, each in sides]
    return [part for total in reversed(over) for part in (total // 2, total - total // 2)]


def _sums(op: Op, x: Tensor, weight: Tensor, padding: list[int], zero: int) -> Tensor:
    """Return the integers that a convolution of bytes adds up, as float32 has them."""
    bound = 255 * int(weight.int().abs().flatten(1).sum(dim=1).max())
    dtype = torch.float32 if bound < _EXACT else torch.float64
    padded = F.pad(x.to(dtype) - zero, padding)
    return F.conv2d(padded, weight.to(dtype), None, op["stride"], 0, groups=op["groups"]).float()


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    return table[codes.long()]


def _quantize(op: Op, known: Known) -> Tensor:
    grid, here = known.grids[op["out"]], known.grids.get(op["in"])
    if here is None:
        return grid.to_bytes(known.values[op["in"]])
    step = _f64(here.scale) / grid.scale
    return code(fma(known.codes(op["in"]), single(step), single(grid.zero - here.zero * step)))


def _avg_pool(op: Op, known: Known) -> Tensor:
    x, kernel, ceil = known.codes(op["in"]), op["kernel"], bool(op["ceil"])
    # What hangs over the edge of the map adds nothing to the sums.
    sums = F.avg_pool2d(x, kernel, op["stride"], ceil_mode=ceil, divisor_override=1)
    counts = F.avg_pool2d(
        torch.ones_like(x[:1, :1]), kernel, op["stride"], ceil_mode=ceil, divisor_override=1
    )
    return code(sums * single(1 / _f64(counts)))


def _affine(op: Op, known: Known) -> Tensor:
    here, grid = known.grids[op["in"]], known.grids[op["out"]]
    weight, bias = (_f64(known.weights[op[field]]) for field in ("weight", "bias"))
    factors = _f64(here.scale) * weight / grid.scale
    shift = bias / grid.scale + grid.zero - here.zero * factors
    out = fma(known.codes(op["in"]), _spread(single(factors)), _spread(single(shift)))
    return code(out, *_limits(op, grid))


def _add(op: Op, known: Known) -> Tensor:
    (a, b), grid = op["in"], known.grids[op["out"]]
    steps = [_f64(known.grids[value].scale) / grid.scale for value in (a, b)]
    shift = grid.zero - known.grids[a].zero * steps[0] - known.grids[b].zero * steps[1]
    out = fma(known.codes(b), single(steps[1]), fma(known.codes(a), single(steps[0]), single(shift)))
    return code(out, *_limits(op, grid))


def _scale(op: Op, known: Known) -> Tensor:
    (value, factors), grid = op["in"], known.grids[op["out"]]
    here = known.grids[value]
    steps = known.values[factors] * single(_f64(here.scale) / grid.scale)
    shift = fma(torch.tensor(-float(here.zero)), steps, torch.tensor(float(grid.zero)))
    out = fma(known.codes(value), steps[:, :, None, None], shift[:, :, None, None])
    return code(out.nan_to_num(0.0))


def _gap(op: Op, known: Known) -> Tensor:
    x, grid = known.values[op["in"]], known.grids[op["in"]]
    step = _f64(grid.scale) / (x.shape[2] * x.shape[3])
    shift = single(-grid.zero * _f64(grid.scale))
    return fma(x.sum((2, 3), dtype=torch.int64).float(), single(step), shift)


def _linear(op: Op, known: Known) -> Tensor:
    grid, weight = Grid(op["in_scale"], op.get("in_zero", 0)), known.weights[op["weight"]]
    x = grid.to_bytes(known.values[op["in"]]).double() - grid.zero
    sums = F.linear(x, weight.double()).float()
    factors = single(_f64(grid.scale) * _f64(known.weights[op["weight_scale"]]))
    bias = known.weights[op["bias"]] if op.get("bias") is not None else torch.zeros(len(weight))
    return ended(op, fma(sums, factors, bias))


def _in_float(op: Op, known: Known) -> Tensor:
    """Return what an operation makes that moves bytes, chooses among them or mixes them."""
    numbers = {value: known.codes(value) for value in inputs_of(op)}
    return code(run_op(op, numbers, known.weights, known.shapes, len(next(iter(numbers.values())))))


def _pad(op: Op, known: Known) -> Tensor:
    taken = known.values[op["in"]][:, :, :: op["stride"], :: op["stride"]]
    return F.pad(taken, [0, 0, 0, 0, op["before"], op["after"]], value=known.grids[op["in"]].zero)


_OPS: dict[str, Callable[[Op, Known], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "add": _add,
    "scale": _scale,
    "pad": _pad,
    "avg_pool": _avg_pool,
    "max_pool": _in_float,
    "crop": _in_float,
    "resize": _in_float,
    "concat": _in_float,
    "relu": lambda op, known: known.values[op["in"]].clamp_min(known.grids[op["in"]].zero),
    "activate": lambda op, known: _looked_up(known.weights[op["table"]], known.values[op["in"]]),
    "gap": _gap,
    "flatten": lambda op, known: known.grids[op["in"]].to_numbers(known.values[op["in"]]).flatten(1),
    "quantize": _quantize,
    "dequantize": lambda op, known: known.grids[op["in"]].to_numbers(known.values[op["in"]]),
}
