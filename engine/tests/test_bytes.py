"""Operations on maps of bytes against literal whole numbers, to the last bit, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import byte_plans
import literal
import numpy as np
import pytest
from byte_plans import ByteMaker
from sidestep_engine import Engine, Plan, PlanError

ISAS = ["base", "avx2", "avxvnni", "avx512", "amx"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Return an instruction set with kernels of bytes; those that this processor lacks are skipped aloud."""
    try:
        Engine(byte_plans.routed_resnet(1, (16,)), isa=request.param)
    except PlanError as error:
        if "this processor cannot run" not in str(error):
            raise
        pytest.skip(str(error))
    name: str = request.param
    return name


def precision(isa: str) -> Any:
    """Return float32, in which an image of float32 stays what it is; AMX has bfloat16 only."""
    return "bfloat16" if isa == "amx" else "float32"


def images(size: int | tuple[int, int] = 8, count: int = 2, seed: int = 0) -> np.ndarray:
    """Return images of numbers that bfloat16 holds too."""
    height, width = (size, size) if isinstance(size, int) else size
    numbers = np.random.default_rng(seed).integers(-250, 250, (count, 3, height, width))
    return (numbers / 64).astype(np.float32)


def agree(plan: Plan, isa: str, batch: np.ndarray, num_threads: int = 1) -> None:
    """Check that an engine says exactly what whole numbers say."""
    engine = Engine(plan, isa=isa, precision=precision(isa), num_threads=num_threads)
    assert engine.quantized
    assert engine.isa == isa
    got = engine(batch)
    scores, options, exits = literal.run(plan, batch)
    np.testing.assert_array_equal(got.logits, scores.astype(np.float32))
    np.testing.assert_array_equal(got.options, options)
    np.testing.assert_array_equal(got.exits, exits)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel": 3},
    "3x3 with a stride": {"kernel": 3, "stride": 2},
    "1x1": {"kernel": 1},
    "1x1 with a stride": {"kernel": 1, "stride": 2},
    "5x5": {"kernel": 5},
    "7x7 without padding": {"kernel": 7, "padding": 0},
    "same": {"kernel": 3, "stride": 2, "padding": 0, "same": True},
    "groups": {"kernel": 3, "groups": 4},
    "depthwise 3x3": {"kernel": 3, "groups": 48},
    "depthwise 5x5 with a stride": {"kernel": 5, "stride": 2, "groups": 48},
    "depthwise 4x4 without padding": {"kernel": 4, "padding": 0, "groups": 48},
}
ENDINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "relu": {"relu": True},
    "relu6": {"activation": "relu6", "scale": 0.07},
    "residual": {"residual": True, "relu": True},
    "table": {"residual": True, "activation": "silu", "inner_scale": 0.02, "inner_zero": 77, "table": True},
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_convolutions(shape: str, ending: str, isa: str) -> None:
    for seed, (inputs, outputs, size) in enumerate([(17, 40, (9, 32)), (64, 96, (8, 7))]):
        fields = CONVOLUTIONS[shape] | ENDINGS[ending]
        if "groups" in fields:
            inputs = outputs = 48
        maker = ByteMaker(seed)
        x = maker.conv8(maker.quantize(0), 3, inputs, 3, **({"zero": 0} if seed else {}))
        if "residual" in fields:
            rest = {key: value for key, value in CONVOLUTIONS[shape].items() if key != "groups"}
            fields |= {"residual": maker.conv8(x, inputs, outputs, **rest)}
        if "table" in fields:
            fields |= {"table": maker.table()}
        agree(maker.scores(maker.conv8(x, inputs, outputs, **fields)), isa, images(size, seed=seed))


def test_scaled_sums_that_32_bits_do_not_hold(isa: str) -> None:
    maker = ByteMaker()
    x = maker.conv8(maker.quantize(0), 3, 24, zero=0)
    x = maker.conv8(x, 24, 32, scale=2e-12, zero=0)
    batch = images((9, 16))
    agree(maker.scores(x), isa, batch)


def test_all_weights_and_bytes_at_their_ends(isa: str) -> None:
    """Sums of products that 16 bits do not hold: 255 times -128 and 127, with zero points at both ends."""
    for zero in (0, 255):
        for ends in ((-128, -128), (127, 127), (-128, 127)):
            maker = ByteMaker()
            x = maker.quantize(0, scale=0.001, zero=255 - zero)  # all bytes are 0 or 255
            x = maker.op("pad", **{"in": x}, stride=1, before=3, after=500)
            name = maker.int8(32, 506, 3, 3)
            maker.tensors[name] = np.resize(np.array(ends, dtype=np.int8), maker.tensors[name].shape)
            scales, bias = maker.positive(32, 1e-5), maker.weight(32)
            fields = {"weight": name, "weight_scale": scales, "bias": bias, "groups": 1}
            x = maker.op("conv", **{"in": x}, **fields, stride=1, padding=1, scale=2.5e-3, zero=100)
            agree(maker.scores(x), isa, np.sign(images((5, 6))) * 9)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_pixels_become_bytes_as_they_are_read(alone: bool, num_threads: int, isa: str) -> None:
    """Where an image has other readers it lies there as real numbers too."""
    maker = ByteMaker(5)
    x = maker.conv8(maker.quantize(0, scale=1 / 128, zero=128), 3, 16)
    if not alone:
        other = maker.op("pad", **{"in": maker.quantize(0, scale=0.5, zero=7)}, stride=1, before=2, after=11)
        x = maker.op("add", **{"in": [x, other]}, **maker.coding())
    plan = maker.scores(x)
    engine = Engine(plan, isa=isa, precision=precision(isa), num_threads=num_threads)
    # With a mean of 1/2 and a deviation of 1/4 these stand for numbers between two steps of the bytes.
    for count in (1, 5):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
        numbers = ((pixels / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
        if alone or precision(isa) == "float32":
            np.testing.assert_array_equal(
                engine(pixels).logits, literal.run(plan, numbers)[0].astype(np.float32)
            )
        agree(plan, isa, images((9, 7), count), num_threads)


def test_the_image_lies_compactly(isa: str) -> None:
    maker = ByteMaker(5)
    agree(maker.scores(maker.conv8(maker.quantize(0), 3, 16, 7, stride=2)), isa, images((21, 18)))


OPERATIONS: dict[str, Callable[[ByteMaker, int], int]] = {
    "max_pool": lambda m, x: m.op("max_pool", **{"in": x}, kernel=3, stride=2, padding=1),
    "avg_pool": lambda m, x: m.op("avg_pool", **{"in": x}, kernel=3, stride=2, ceil=True),
    "pad": lambda m, x: m.op("pad", **{"in": x}, stride=2, before=5, after=2),
    "crop": lambda m, x: m.op("crop", **{"in": x}, size=[4, 5]),
    "relu": lambda m, x: m.op("relu", **{"in": x}),
    "concat": lambda m, x: m.op("concat", **{"in": [x, m.op("relu", **{"in": x})]}),
    "activate": lambda m, x: m.op("activate", **{"in": x}, function="silu", table=m.table(), **m.coding()),
    "quantize": lambda m, x: m.quantize(x),
    "affine": lambda m, x: m.op(
        "affine", **{"in": x}, weight=m.weight(24), bias=m.weight(24), relu=True, **m.coding()
    ),
    "affine with relu6": lambda m, x: m.op(
        "affine", **{"in": x}, weight=m.weight(24), bias=m.weight(24), activation="relu6", scale=0.04, zero=30
    ),
    "add": lambda m, x: m.op("add", **{"in": [x, m.conv8(x, 24, 24, 1)]}, **m.coding()),
    "add with relu": lambda m, x: m.op("add", **{"in": [m.conv8(x, 24, 24), x]}, relu=True, **m.coding()),
    "scale": lambda m, x: m.op("scale", **{"in": [x, m.op("gap", **{"in": x})]}, **m.coding()),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations(kind: str, isa: str) -> None:
    for seed in range(3):
        maker = ByteMaker(seed)
        x = maker.conv8(maker.quantize(0), 3, 24)
        agree(maker.scores(OPERATIONS[kind](maker, x)), isa, images((9, 8 + seed), seed=seed))


def test_bytes_become_real_numbers_and_bytes_again(isa: str) -> None:
    """To the bit in float32; bfloat16 rounds what 8 bits and a scale stand for, by less than a step."""
    for seed in range(3):
        maker = ByteMaker(seed)
        x = maker.conv8(maker.quantize(0), 3, 24)
        step = 0.02
        plan = maker.scores(maker.quantize(maker.op("dequantize", **{"in": x}), scale=step, zero=100))
        batch = images((9, 8 + seed), seed=seed)
        if precision(isa) == "float32":
            agree(plan, isa, batch)
            continue
        got = Engine(plan, isa=isa, precision=precision(isa))(batch).logits
        np.testing.assert_allclose(got, literal.run(plan, batch)[0], rtol=0, atol=1.001 * step)


def real_maps_become_bytes(seed: int, *, adds: bool = False, **fields: Any) -> Plan:
    """Return a plan with convolutions of real numbers in front of bytes, outside of options and inside.

    They add what they read, if asked to.
    """
    maker = ByteMaker(seed)
    real = maker.op("dequantize", **{"in": maker.conv8(maker.quantize(0), 3, 24, scale=0.02, zero=120)})

    def made() -> int:
        residual = real if adds else None
        return maker.quantize(maker.conv(real, 24, 24, residual=residual, **fields), scale=0.05, zero=60)

    first = made()
    scores = maker.linear(maker.op("gap", **{"in": first}), 24, 2)
    return maker.scores(maker.choose(scores, [lambda: [first], lambda: [made()]])[0])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_real_maps_that_become_bytes_at_once(num_threads: int, isa: str) -> None:
    """They are made a few rows at a time. What Winograd's algorithm rounds is no more than a step."""
    step = 0.0501 if precision(isa) == "float32" else 0.1001
    cases: list[dict[str, Any]] = [{"kernel": 3}, {"kernel": 5, "stride": 2}, {"kernel": 3, "groups": 24}]
    cases += [{"kernel": 1, "adds": True}, {"kernel": 3, "adds": True}]
    cases += [{"kernel": 3, "groups": 24, "adds": True}]
    for seed, fields in enumerate(cases):
        plan, batch = real_maps_become_bytes(seed, **fields), images((41, 23), seed=seed)
        wanted, options, _ = literal.run(plan, batch)
        engine = Engine(plan, isa=isa, precision=precision(isa), num_threads=num_threads)
        for count in (1, 2):
            got = engine(batch[:count])
            np.testing.assert_array_equal(got.options, options[:count])
            np.testing.assert_allclose(got.logits, wanted[:count], rtol=0, atol=step)


def test_resizing_is_right_to_one_step(isa: str) -> None:
    maker = ByteMaker()
    x = maker.conv8(maker.quantize(0), 3, 24, scale=0.01, zero=9)
    plan = maker.scores(maker.op("resize", **{"in": x}, size=[11, 6], align_corners=False))
    batch = images((7, 9))
    got = Engine(plan, isa=isa, precision=precision(isa))(batch).logits
    np.testing.assert_allclose(got, literal.run(plan, batch)[0], rtol=0, atol=0.0101)


def test_linear_layers(isa: str) -> None:
    for seed, (inputs, outputs) in enumerate([(24, 1), (24, 7), (24, 16), (24, 100), (128, 300), (150, 144)]):
        maker = ByteMaker(seed)
        x = maker.op("gap", **{"in": maker.conv8(maker.quantize(0), 3, inputs)})
        agree(
            maker.plan(maker.linear8(maker.linear8(x, inputs, 37, relu=True), 37, outputs)),
            isa,
            images(count=7 if outputs < 300 else 2),
        )


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_routed_network(num_threads: int, isa: str) -> None:
    plan = byte_plans.routed_resnet()
    for count in (1, 9):
        agree(plan, isa, images(32, count), num_threads)


def test_every_kind_runs_alike_on_every_instruction_set(isa: str) -> None:
    plan = byte_plans.every_byte_kind()
    batch = images(count=5)
    wanted, got = Engine(plan, isa="base")(batch), Engine(plan, isa=isa, precision=precision(isa))(batch)
    np.testing.assert_array_equal(got.options, wanted.options)
    np.testing.assert_allclose(got.logits, wanted.logits, rtol=0.05, atol=0.05)


def test_what_is_no_number_becomes_the_byte_0(isa: str) -> None:
    maker = ByteMaker()
    plan = maker.scores(maker.quantize(0, scale=0.02, zero=128))
    batch = images()
    batch[0, 0, 0, 0], batch[0, 0, 0, 1], batch[0, 0, 0, 2] = np.nan, np.inf, -np.inf
    agree(plan, isa, batch)
