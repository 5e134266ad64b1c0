"""Plans made shorter, by hand."""

from __future__ import annotations

from typing import Any

from sidestep.plan.format import Op, Step
from sidestep.plan.simplify import simplify


def conv(read: int, out: int, **fields: Any) -> Op:
    same = {"weight": "w", "bias": None, "stride": 1, "padding": 1, "groups": 1, "residual": None}
    return {"op": "conv", "in": read, "out": out, **same, "relu": False, **fields}


def add(a: int, b: int, out: int) -> Op:
    return {"op": "add", "in": [a, b], "out": out, "relu": False}


def relu(read: int, out: int, **fields: float) -> Op:
    return {"op": "relu", "in": read, "out": out, **fields}


def simplified(*ops: Op, output: int) -> list[Op]:
    (step,), last = simplify([{"ops": list(ops)}], output)
    assert last == step["ops"][-1]["out"]
    return step["ops"]


def test_a_residual_block_becomes_two_convolutions() -> None:
    ops = simplified(
        conv(0, 1), relu(1, 2), conv(2, 3, weight="v"), add(3, 0, 4), relu(4, 5), output=5
    )  # fmt: skip
    assert ops == [conv(0, 1, relu=True), conv(1, 2, weight="v", residual=0, relu=True)]


def test_a_convolution_waits_for_what_it_adds() -> None:
    ops = simplified(conv(0, 1), {"op": "pad", "in": 0, "out": 2, "stride": 2}, add(1, 2, 3), output=3)
    assert ops == [{"op": "pad", "in": 0, "out": 1, "stride": 2}, conv(0, 2, residual=1)]


def test_of_two_convolutions_one_adds_the_other() -> None:
    ops = simplified(conv(0, 1), conv(0, 2, weight="v"), add(1, 2, 3), output=3)
    assert ops == [conv(0, 1, weight="v"), conv(0, 2, residual=1)]


def test_what_is_read_twice_stays() -> None:
    ops = [conv(0, 1), relu(1, 2), add(1, 2, 3)]
    assert simplified(*ops, output=3) == ops


def test_a_relu_in_between_keeps_addition_and_convolution_apart() -> None:
    ops = simplified(conv(0, 1), relu(1, 2), add(2, 0, 3), relu(3, 4, slope=0.1), output=4)
    assert ops == [conv(0, 1, relu=True), add(1, 0, 2) | {"relu": True, "slope": 0.1}]


def test_a_second_relu_stays() -> None:
    ops = simplified(conv(0, 1), relu(1, 2, slope=0.1), relu(2, 3), output=3)
    assert ops == [conv(0, 1, relu=True, slope=0.1), relu(1, 2)]


def test_vectors_are_rectified_where_they_are_made() -> None:
    linear = {"op": "linear", "in": 1, "out": 2, "weight": "w", "bias": None, "relu": False}
    pooled = {"op": "gap", "in": 0, "out": 1}
    rectified = {"op": "vmap", "in": 2, "out": 3, "function": "relu"}
    assert simplified(pooled, linear, rectified, output=3) == [pooled, linear | {"relu": True}]
    squashed = rectified | {"function": "tanh"}
    assert simplified(pooled, linear, squashed, output=3) == [pooled, linear, squashed]


def test_what_nothing_reads_is_dropped_and_what_repeats_is_read_again() -> None:
    ops = simplified(
        relu(0, 1), conv(0, 2), conv(0, 3), relu(3, 4), conv(4, 5, weight="v"), conv(2, 6, weight="v"),
        add(5, 6, 7), output=7,
    )  # fmt: skip
    assert [op["op"] for op in ops] == ["conv", "relu", "conv", "conv"]
    assert [op["in"] for op in ops] == [0, 1, 1, 2]


def resize(read: int, out: int) -> Op:
    return {"op": "resize", "in": read, "out": out, "size": [4, 4], "align_corners": True}


def concat(a: int, b: int, out: int) -> Op:
    return {"op": "concat", "in": [a, b], "out": out}


def test_joined_maps_are_resized_alike() -> None:
    ops = simplified(conv(0, 1), resize(0, 2), concat(2, 1, 3), output=3)
    assert ops[1] == {"op": "resize", "in": 0, "out": 2, "align_corners": True, "like": 1}


def test_a_map_is_resized_to_numbers_where_no_other_is_there_before() -> None:
    ops = [resize(0, 1), conv(0, 2), concat(1, 2, 3)]
    assert simplified(*ops, output=3) == ops


def choice(*options: tuple[list[Op], int], logits: int, defines: int) -> Step:
    return {
        "choose": logits,
        "options": [{"ops": ops, "results": [result]} for ops, result in options],
        "defines": [defines],
    }


def test_nothing_crosses_the_border_of_an_option() -> None:
    steps = [
        {"ops": [conv(0, 1), {"op": "gap", "in": 0, "out": 2}]},
        choice(([], 1), ([relu(1, 3)], 3), logits=2, defines=4),
        {"ops": [relu(4, 5), relu(1, 6), add(5, 6, 7)]},
        choice(([relu(1, 8)], 8), ([], 7), logits=2, defines=9),
    ]
    simple, output = simplify(steps, 9)
    assert output == 8
    assert [op["op"] for op in simple[0]["ops"]] == ["conv", "gap"]
    # The option keeps its own ReLU, and a later one reads that of the step in front of it.
    assert simple[1] == choice(([], 1), ([relu(1, 3)], 3), logits=2, defines=4)
    assert simple[2]["ops"] == [relu(4, 5), relu(1, 6), add(5, 6, 7)]
    assert simple[3] == choice(([], 6), ([], 7), logits=2, defines=8)


def test_exits_keep_what_they_read() -> None:
    gap = {"op": "gap", "in": 0, "out": 5}
    leave = {"logits": 5, "criterion": "margin", "threshold": 0.5, "temperature": 1.0}
    steps, output = simplify([{"ops": [gap]}, {"exit": leave}, {"ops": [relu(0, 9)]}], 9)
    assert steps == [{"ops": [gap | {"out": 1}]}, {"exit": leave | {"logits": 1}}, {"ops": [relu(0, 2)]}]
    assert output == 2
