"""What a plan's operations are in ONNX, for a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sidestep.plan.format import TOKEN_ACTIVATIONS, TOKEN_OPS, Op, Plan, inputs_of, lists_of_ops
from sidestep.targets.map_shapes import rows_of
from sidestep.targets.onnx_graph import OnnxGraph

# (graph, operation, names of what it reads) -> name of its result.
_Write = Callable[[OnnxGraph, Op, list[str]], str]


def operations_without_onnx(plan: Plan) -> list[str]:
    """Return the names of a plan's operations that `write_op` does not know."""
    ops = (op for ops in lists_of_ops(plan.steps) for op in ops)
    names = (name for op in ops for name in (op["op"], op.get("activation"), op.get("function")))
    return sorted({str(name) for name in names if name in (*TOKEN_OPS, *TOKEN_ACTIVATIONS)})


def write_op(graph: OnnxGraph, op: Op, names: Mapping[int, str]) -> str:
    """Write an operation and return the name of its result.

    Args:
        graph: that grows.
        op: of a plan, or of a segment's decision.
        names: of the values that are known.
    """
    read = op.get("in", [])
    read = [read] if isinstance(read, int) else read
    given = [names[value] for value in read]
    if op["op"] == "vconst" or (read and graph.constant_values.issuperset(inputs_of(op))):
        graph.constant_values.add(op["out"])
    elif op["op"] == "vgather":  # joins what must have as many rows
        given = [
            graph.spread(name, graph.shapes[value]) if value in graph.constant_values else name
            for name, value in zip(given, read, strict=True)
        ]
    if op.get("residual") is not None:
        return _finished(graph, op, graph.node("Add", [_conv(graph, op, given), names[op["residual"]]]))
    return _finished(graph, op, _OPS[op["op"]](graph, op, given))


def _finished(graph: OnnxGraph, op: Op, name: str) -> str:
    """Return the result with the ReLU or the activation in which an operation ends."""
    if op["op"] in ("relu", "activate", "vmap"):
        return name
    if op.get("relu"):
        return _relu(graph, op, [name])
    return _function(graph, op["activation"], name) if op.get("activation") else name


def _relu(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    if op.get("slope"):
        return graph.node("LeakyRelu", given, alpha=float(op["slope"]))
    return graph.node("Relu", given)


def _function(graph: OnnxGraph, function: str, name: str) -> str:
    """Return an activation of docs/plan.md."""
    if function == "relu6":
        return graph.node("Clip", [name, graph.number(0), graph.number(6)])
    if function == "silu":
        return graph.node("Mul", [name, graph.node("Sigmoid", [name])])
    if function == "hard_sigmoid":
        return graph.node("HardSigmoid", [name], alpha=1 / 6, beta=0.5)
    return graph.node("HardSwish" if function == "hard_swish" else function.capitalize(), [name])


def _mapped(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    if op["function"] == "relu":
        return _relu(graph, op, given)
    return _function(graph, op["function"], given[0])


def _conv(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    weight = graph.tensors[op["weight"]].shape
    pads = [op["padding"]] * 4
    if op.get("same"):
        sides = graph.shapes[op["in"]][1:]
        totals = [
            max((rows_of(op, side, kernel) - 1) * op["stride"] + kernel - side, 0)
            for side, kernel in zip(sides, weight[2:], strict=True)
        ]
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    inputs = [*given, graph.weight(op["weight"])]
    if op["bias"] is not None:
        inputs.append(graph.weight(op["bias"]))
    return graph.node(
        "Conv",
        inputs,
        kernel_shape=list(weight[2:]),
        strides=[op["stride"]] * 2,
        pads=pads,
        group=op["groups"],
    )


def _max_pool(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    sides: dict[str, Any] = {"kernel_shape": [op["kernel"]] * 2, "strides": [op["stride"]] * 2}
    return graph.node("MaxPool", given, pads=[op["padding"]] * 4, **sides)


def _avg_pool(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    # What hangs over the edge is padding that does not count: runtimes disagree about ceil_mode.
    over = [
        max((rows_of(op, side, op["kernel"]) - 1) * op["stride"] + op["kernel"] - side, 0)
        for side in graph.shapes[op["in"]][1:]
    ]
    sides: dict[str, Any] = {"kernel_shape": [op["kernel"]] * 2, "strides": [op["stride"]] * 2}
    return graph.node("AveragePool", given, pads=[0, 0, *over], count_include_pad=0, **sides)


def _pad(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    (name,) = given
    sides: dict[str, Any] = {"kernel_shape": [1, 1], "strides": [op["stride"]] * 2}
    if op["before"] or op["after"]:
        # Runtimes keep their own layout of maps in a convolution, and so in all residual sums behind it, but
        # not in a Pad; it has a few percent of the block's multiply-adds.
        channels = graph.shapes[op["in"]][0]
        rows = np.eye(channels + op["before"] + op["after"], channels, -op["before"], dtype=np.float32)
        return graph.node("Conv", [name, graph.constant(rows[:, :, None, None])], **sides)
    # Every stride-th pixel; likewise in a pooling, and not in a Slice.
    return graph.node("MaxPool", [name], **sides) if op["stride"] > 1 else name


def _crop(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    first = [(side - kept) // 2 for side, kept in zip(graph.shapes[op["in"]][1:], op["size"], strict=True)]
    last = [begin + kept for begin, kept in zip(first, op["size"], strict=True)]
    return graph.node("Slice", [*given, graph.numbers(*first), graph.numbers(*last), graph.numbers(2, 3)])


def _resize(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    """Write two products with constant matrices: bilinear and bicubic filters are separable, and exact so."""
    (name,) = given
    rows, columns = (
        _filter(op, before, after)
        for before, after in zip(graph.shapes[op["in"]][1:], graph.shapes[op["out"]][1:], strict=True)
    )
    if columns is not None:
        name = graph.node("MatMul", [name, graph.constant(columns.T)])
    return name if rows is None else graph.node("MatMul", [graph.constant(rows), name])


def _filter(op: Op, before: int, after: int) -> Any:
    """Return the (after, before) matrix that resizes a side, or None where that stays as it is."""
    if before == after:
        return None
    pixels = torch.eye(before)[None, None]
    if op.get("antialias"):
        settings: dict[str, Any] = {"mode": op["interpolation"], "antialias": True, "align_corners": False}
    else:
        settings = {"mode": "bilinear", "align_corners": bool(op.get("align_corners"))}
    return F.interpolate(pixels, [after, before], **settings)[0, 0].numpy()


def _linear(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    inputs = [*given, graph.weight(op["weight"])]
    if op["bias"] is not None:
        inputs.append(graph.weight(op["bias"]))
    return graph.node("Gemm", inputs, transB=1)


def _affine(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    factor, shift = (graph.weight(op[field], (1, -1, 1, 1)) for field in ("weight", "bias"))
    return graph.node("Add", [graph.node("Mul", [*given, factor]), shift])


def _scale(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    return graph.node("Mul", [given[0], graph.node("Unsqueeze", [given[1], graph.numbers(2, 3)])])


def _gather(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    whole = given[0] if len(given) == 1 else graph.node("Concat", given, axis=1)
    first, count = op["indices"][0], len(op["indices"])
    if op["indices"] == list(range(first, first + count)):
        ends = [graph.numbers(first), graph.numbers(first + count), graph.numbers(1)]
        return graph.node("Slice", [whole, *ends])
    return graph.node("Gather", [whole, graph.numbers(*op["indices"])], axis=1)


def _vadd(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    a, b = given
    if op["alpha"] == -1:
        return graph.node("Sub", given)
    return graph.node(
        "Add", [a, b if op["alpha"] == 1 else graph.node("Mul", [b, graph.number(op["alpha"])])]
    )


def _vaffine(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    (name,) = given
    if op["mul"] != 1:
        name = graph.node("Mul", [name, graph.number(op["mul"])])
    return name if op["add"] == 0 else graph.node("Add", [name, graph.number(op["add"])])


def _log_add_exp(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    largest = graph.node("Max", given)
    terms = [graph.node("Exp", [graph.node("Sub", [name, largest])]) for name in given]
    return graph.node("Add", [largest, graph.node("Log", [graph.node("Add", terms)])])


def _choice(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    """Write the index of the largest entry, the first of equal ones, as a whole number."""
    if op["options"] != 2:
        return graph.node("ArgMax", given, axis=1, keepdims=0)
    first, second = (
        graph.node("Gather", [*given, graph.constant(np.asarray(index, np.int64))], axis=1)
        for index in range(2)
    )
    return graph.node("Cast", [graph.node("Greater", [second, first])], to=7)


def _label(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    # As a number like all that passes from segment to segment.
    return graph.node("Cast", [graph.node("ArgMax", given, axis=1, keepdims=1)], to=1)


def _doubt(graph: OnnxGraph, op: Op, given: list[str]) -> str:
    """Write how uncertain an exit is, which falls where its score rises; float32 tells sure ones apart so.

    With d_j = (logit_j - largest logit) / temperature and r the sum of e^d over all classes but the first,
    a confidence of p is (1 - p) / p = r, a margin of m is 1 - m = (r + e^{d_2}) / (1 + r), and the entropy is
    log(1 + r) - sum d e^d / (1 + r); a count is minus itself.
    """
    if op["criterion"] in ("patience", "agreement"):
        return graph.node("Neg", [_count(graph, op["criterion"], given)])
    (logits,) = given
    if op["temperature"] != 1:
        logits = graph.node("Div", [logits, graph.number(op["temperature"])])
    num_classes = graph.shapes[op["in"][0]][0]
    ordered, _ = graph.several("TopK", [logits, graph.numbers(num_classes)], 2)

    def part(first: int, last: int, of: str) -> str:
        return graph.node("Slice", [of, graph.numbers(first), graph.numbers(last), graph.numbers(1)])

    behind = graph.node("Sub", [part(1, num_classes, ordered), part(0, 1, ordered)])
    powers = graph.node("Exp", [behind])
    rest = graph.node("ReduceSum", [powers, graph.numbers(1)], keepdims=1)
    total = graph.node("Add", [rest, graph.number(1)])
    if op["criterion"] == "confidence":
        doubt = rest
    elif op["criterion"] == "margin":
        doubt = graph.node("Div", [graph.node("Add", [rest, part(0, 1, powers)]), total])
    else:
        terms = graph.node("Mul", [behind, powers])
        mean = graph.node("Div", [graph.node("ReduceSum", [terms, graph.numbers(1)], keepdims=1), total])
        doubt = graph.node("Sub", [_log_of_one_and(graph, rest, total), mean])
    return graph.node("Squeeze", [doubt, graph.numbers(1)])


def _log_of_one_and(graph: OnnxGraph, small: str, total: str) -> str:
    """Write log(1 + r), which a logarithm of 1 + r in float32 loses where r is small: r - r^2 / 2 there."""
    square = graph.node("Mul", [graph.node("Mul", [small, small]), graph.number(0.5)])
    near = graph.node("Less", [small, graph.number(1e-3)])
    return graph.node("Where", [near, graph.node("Sub", [small, square]), graph.node("Log", [total])])


def _count(graph: OnnxGraph, criterion: str, labels: list[str]) -> str:
    """Write how many exits in a row name the last one's class, or whether one before it does."""
    *before, last = labels
    same = [graph.node("Cast", [graph.node("Equal", [name, last])], to=1) for name in before]
    alone = graph.node("Cast", [graph.node("Equal", [last, last])], to=1)
    if criterion == "agreement":
        total = graph.node("Max", same) if same else graph.node("Sub", [alone, alone])
    else:
        total = run = alone
        for name in reversed(same):
            run = graph.node("Mul", [run, name])
            total = graph.node("Add", [total, run])
    return graph.node("Squeeze", [total, graph.numbers(1)])


_OPS: dict[str, _Write] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "pad": _pad,
    "crop": _crop,
    "affine": _affine,
    "add": lambda graph, op, given: graph.node("Add", given),
    "scale": _scale,
    "relu": _relu,
    "activate": _mapped,
    "concat": lambda graph, op, given: graph.node("Concat", given, axis=1),
    "resize": _resize,
    "gap": lambda graph, op, given: graph.node("Flatten", [graph.node("GlobalAveragePool", given)], axis=1),
    "flatten": lambda graph, op, given: graph.node("Flatten", given, axis=1),
    "linear": _linear,
    "vconst": lambda graph, op, given: graph.weight(op["weight"], (1, -1)),
    "vgather": _gather,
    "vadd": _vadd,
    "vmul": lambda graph, op, given: graph.node("Mul", given),
    "vdiv": lambda graph, op, given: graph.node("Div", given),
    "vaffine": _vaffine,
    "vmap": _mapped,
    "vclamp_min": lambda graph, op, given: graph.node("Max", [*given, graph.number(op["min"])]),
    "vsum": lambda graph, op, given: graph.node("ReduceSum", [*given, graph.numbers(1)], keepdims=1),
    "vlog_softmax": lambda graph, op, given: graph.node("LogSoftmax", given, axis=1),
    "vlogaddexp": _log_add_exp,
    "choice": _choice,
    "doubt": _doubt,
    "label": _label,
}
