"""Every op of the format against NumPy, on every instruction set that this processor has."""

from __future__ import annotations

from typing import Any

import literal
import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def images(plan: Plan, count: int = 3, size: tuple[int, int] | None = None, seed: int = 1) -> np.ndarray:
    shape = (count, plan.channels, *(size or plan.size))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(plan: Plan, x: np.ndarray, kernels: dict[str, Any], threads: int = 1) -> None:
    engine_agrees(Engine(plan, num_threads=threads, **kernels), x, kernels)


def engine_agrees(engine: Engine, x: np.ndarray, kernels: dict[str, Any]) -> None:
    scores, options, exits = literal.run(engine.plan, x)
    output = engine(x)
    scale = np.abs(scores).max() + 1e-6
    np.testing.assert_allclose(output.logits / scale, scores / scale, atol=TOLERANCE[kernels["precision"]])
    if kernels["precision"] == "float32":
        np.testing.assert_array_equal(output.options, options)
        np.testing.assert_array_equal(output.exits, exits)


def ending(maker: plans.Maker, x: int, size: int) -> Plan:
    """Return a plan whose scores are all entries of a map."""
    return maker.plan(maker.op("flatten", **{"in": x}), size)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 16), (16, 16), (24, 40), (64, 7), (128, 32)])
def test_convolutions(kernels: dict[str, str], kernel: int, stride: int, inputs: int, outputs: int) -> None:
    maker = plans.Maker(channels=inputs)
    x = maker.conv(0, inputs, outputs, kernel, stride)
    plan = ending(maker, x, 13)
    agree(plan, images(plan), kernels)


# Every width in one engine, each with another height: how a map is cut into tiles depends on both.
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_widths(kernels: dict[str, str], kernel: int, stride: int, threads: int) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 16, kernel, slope=0.3)
    b = maker.conv(a, 16, 48, kernel, stride, relu=False)
    c = maker.conv(b, 48, 48, kernel, residual=b)
    d = maker.conv(c, 48, 20, 1, slope=0.1)
    plan = maker.plan(maker.op("gap", **{"in": maker.conv(d, 20, 32, kernel, relu=False)}), 8)
    engine = Engine(plan, num_threads=threads, **kernels)
    for width in range(1, 41):
        engine_agrees(engine, images(plan, 1, (width * 5 % 11 + 1, width), seed=width), kernels)


def test_what_lies_around_maps_stays_zero(kernels: dict[str, str]) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 16, 7)
    b = maker.conv(maker.conv(a, 16, 16), 16, 16, residual=a)
    c = maker.conv(b, 16, 32, stride=2)
    d = maker.conv(maker.conv(c, 32, 32, 5), 32, 32, 1, residual=c)
    plan = ending(maker, d, 16)
    for threads in (1, 2):
        engine = Engine(plan, num_threads=threads, **kernels)
        for size in ((16, 16), (9, 21), (7, 7), (3, 2)):
            first, large = images(plan, 1, size), 1e4 * images(plan, 1, size, seed=2)
            before = engine(first).logits
            engine(large)
            engine(np.concatenate([large, large, first]))
            np.testing.assert_array_equal(engine(first).logits, before)
            engine_agrees(engine, first, kernels)


def test_convolutions_of_maps_and_with_residuals(kernels: dict[str, str]) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 20)
    b = maker.conv(a, 20, 20, relu=False)
    c = maker.conv(b, 20, 20, 1, residual=a)
    d = maker.conv(c, 20, 36, 3, stride=2, relu=False)
    plan = ending(maker, maker.conv(d, 36, 36, 3, residual=d), 11)
    agree(plan, images(plan), kernels)


# Odd sizes end in tiles of one row or pixel; more than 8 tiles in a row make several groups of tiles.
@pytest.mark.parametrize("size", [(1, 2), (2, 2), (5, 4), (7, 7), (6, 38)])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (24, 40), (64, 80)])
def test_winograd(kernels: dict[str, str], size: tuple[int, int], inputs: int, outputs: int) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, inputs, 1)
    b = maker.conv(a, inputs, outputs, 3, slope=0.2)
    c = maker.conv(b, outputs, outputs, 3, residual=b)
    plan = maker.plan(maker.op("gap", **{"in": maker.conv(c, outputs, 16, 3, relu=False)}), 8)
    x = images(plan, size=size)
    agree(plan, x, kernels)
    agree(plan, x[:1], kernels, threads=2)
    agree(plan, x[:1], kernels, threads=3)


# Weights far larger than the maps: threads share out channels and not rows.
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2), (5, 1)])
def test_heavy_convolutions(kernels: dict[str, str], kernel: int, stride: int) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 128, 1)
    b = maker.conv(a, 128, 128, kernel, stride)
    c = maker.conv(b, 128, 96, kernel)
    d = maker.conv(c, 96, 96, kernel, residual=c)
    plan = maker.plan(maker.op("gap", **{"in": d}), 2)
    for threads in (2, 3, 4):
        agree(plan, images(plan, 1), kernels, threads)


# The image lies in memory in its own way, but not where it is added or takes the place of other maps.
@pytest.mark.parametrize("channels", [3, 16, 20])
@pytest.mark.parametrize("what", ["residual", "addend", "result"])
def test_images_beside_maps(kernels: dict[str, str], channels: int, what: str) -> None:
    maker = plans.Maker(channels=channels)
    if what == "residual":
        x = maker.conv(maker.conv(0, channels, channels, 5), channels, channels, 3, residual=0)
    elif what == "addend":
        x = maker.op("add", **{"in": [maker.conv(0, channels, channels, 5), 0]}, relu=True)
    else:
        scores = maker.linear(maker.op("gap", **{"in": 0}), channels, 2)
        execute = [lambda: [0], lambda: [maker.conv(0, channels, channels, 5)]]
        x = maker.conv(maker.choose(scores, execute)[0], channels, channels)
    plan = ending(maker, x, 6)
    agree(plan, images(plan, 6), kernels)
    agree(plan, images(plan, 1), kernels, threads=2)


def test_groups_leaky_relus_and_paddings_that_differ(kernels: dict[str, str]) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 24, 5, padding=1, slope=0.1)
    b = maker.conv(a, 24, 12, 3, groups=4, padding=0)
    c = maker.op("relu", **{"in": maker.conv(b, 12, 12, 3, relu=False)}, slope=0.25)
    plan = ending(maker, c, 12)
    agree(plan, images(plan), kernels)


@pytest.mark.parametrize("size", [(9, 12), (8, 8), (5, 31)])
def test_maps(kernels: dict[str, str], size: tuple[int, int]) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 10)
    pooled = maker.op("max_pool", **{"in": a}, kernel=3, stride=2, padding=1)
    mean = maker.op("avg_pool", **{"in": a}, kernel=2, stride=2, ceil=True)
    both = maker.op("concat", **{"in": [pooled, mean]})
    factors = maker.op("vmap", **{"in": maker.op("gap", **{"in": both})}, function="sigmoid")
    scaled = maker.op("scale", **{"in": [both, factors]})
    normal = maker.op("affine", **{"in": scaled}, weight=maker.weight(20), bias=maker.weight(20), relu=True)
    total = maker.op("add", **{"in": [normal, both]}, relu=False)
    padded = maker.op("pad", **{"in": total}, stride=2, before=3, after=4)
    plan = maker.plan(maker.op("gap", **{"in": padded}), 9)
    agree(plan, images(plan, size=size), kernels)
    agree(plan, images(plan, count=1, size=size), kernels, threads=3)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resized_maps(kernels: dict[str, str], align_corners: bool) -> None:
    maker = plans.Maker()
    small = maker.conv(0, 3, 20, stride=2)
    large = maker.op("resize", **{"in": small}, size=[11, 16], align_corners=align_corners)
    like = maker.op("resize", **{"in": large}, like=small, align_corners=align_corners)
    plan = ending(maker, maker.op("add", **{"in": [like, small]}, relu=False), 13)
    agree(plan, images(plan), kernels)


def test_pooled_images(kernels: dict[str, str]) -> None:
    maker = plans.Maker()
    small = maker.op("avg_pool", **{"in": 0}, kernel=2, stride=2, ceil=False)
    plan = maker.plan(maker.op("gap", **{"in": maker.conv(small, 3, 8)}), 10)
    agree(plan, images(plan), kernels)


def test_vectors(kernels: dict[str, str]) -> None:
    maker = plans.Maker()
    v = maker.linear(maker.op("flatten", **{"in": 0}), 48, 37, relu=True)
    w = maker.linear(v, 37, 150)
    constant = maker.op("vconst", weight=maker.weight(150))
    total = maker.op("vadd", **{"in": [w, constant]}, alpha=-0.5, relu=True)
    length = maker.op("vsum", **{"in": maker.op("vmul", **{"in": [total, total]})})
    root = maker.op("vmap", **{"in": maker.op("vclamp_min", **{"in": length}, min=1e-6)}, function="sqrt")
    unit = maker.op("vdiv", **{"in": [total, root]})
    waves = [maker.op("vmap", **{"in": unit}, function=name) for name in ("tanh", "sigmoid", "exp")]
    mixed = maker.op("vgather", **{"in": [*waves, root]}, indices=[0, 450, 300, 299, 150, 7])
    plan = maker.plan(maker.op("vaffine", **{"in": mixed}, mul=3.0, add=-1.0), 4)
    agree(plan, images(plan), kernels)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_routed_networks(kernels: dict[str, str], count: int, threads: int) -> None:
    plan = plans.routed_resnet(2, (16, 32), seed=3)
    agree(plan, images(plan, count), kernels, threads)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_share_out_large_linear_layers(kernels: dict[str, str], threads: int) -> None:
    """One goes through a choice that may replace it, as the state of a recurrent router does."""
    maker = plans.Maker(seed=4)
    pooled = maker.op("gap", **{"in": maker.conv(0, 3, 16)})
    state = maker.linear(maker.linear(pooled, 16, 256, relu=True), 256, 256, relu=True)
    for _ in range(3):
        scores = maker.linear(state, 256, 2)
        options = [lambda s=state: [s], lambda s=state: [maker.linear(s, 256, 256, relu=True)]]
        state = maker.choose(scores, options)[0]
    plan = maker.plan(maker.linear(maker.linear(state, 256, 200, relu=True), 200, 10), 8)
    x = images(plan, 12)
    assert len(np.unique(literal.run(plan, x)[1])) == 2
    for i in range(len(x)):
        agree(plan, x[i : i + 1], kernels, threads)


def test_sizes_other_than_in_training(kernels: dict[str, str]) -> None:
    plan = plans.routed_resnet(1, (16, 32))
    for size in ((40, 24), (17, 33), (8, 8)):
        agree(plan, images(plan, 2, size), kernels)


def test_exits(kernels: dict[str, str]) -> None:
    for criterion, threshold, seed in (
        ("confidence", 0.35, 5),
        ("margin", 0.1, 5),
        ("entropy", 1.55, 5),
        # Whose exits agree about most images, two of them about two images with another in between.
        ("patience", 2, 24),
        ("agreement", 1, 24),
    ):
        maker = plans.Maker(seed=seed)
        x, logits = maker.conv(0, 3, 16), -1
        for _ in range(3):
            x = maker.conv(x, 16, 16)
            logits = maker.linear(maker.op("gap", **{"in": x}), 16, 6)
            leave = {"logits": logits, "criterion": criterion, "threshold": threshold, "temperature": 0.7}
            maker.steps.append({"exit": leave})
        plan = maker.plan(logits, 8)
        x_all = images(plan, 24) * np.linspace(0.1, 3, 24, dtype=np.float32)[:, None, None, None]
        assert len(set(literal.run(plan, x_all)[2])) > 1
        agree(plan, x_all, kernels, threads=2)
