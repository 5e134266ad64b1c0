"""What efficient networks are made of, against NumPy, on every instruction set that this processor has."""

from __future__ import annotations

import literal
import numpy as np
import plans
import pytest
from sidestep_engine import Engine
from test_ops import agree, images

ACTIVATIONS = ("relu6", "silu", "hard_swish", "hard_sigmoid", "sigmoid", "gelu", "gelu_tanh")


@pytest.mark.parametrize("size", [(7, 7), (9, 16), (4, 27), (1, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_depthwise_convolutions(
    kernels: dict[str, str], kernel: int, stride: int, size: tuple[int, int]
) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 40, 1)
    b = maker.conv(a, 40, 40, kernel, stride, groups=40, slope=0.1)
    c = maker.conv(b, 40, 40, kernel, groups=40, relu=False, activation="silu", residual=b)
    plan = maker.plan(maker.op("flatten", **{"in": maker.conv(c, 40, 3, 1, relu=False)}), 8)
    x = images(plan, size=size)
    agree(plan, x, kernels)
    agree(plan, x[:1], kernels, threads=3)


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (5, 5), (13, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("groups", [1, 20])
def test_padding_that_keeps_the_size(
    kernels: dict[str, str], kernel: int, stride: int, size: tuple[int, int], groups: int
) -> None:
    maker = plans.Maker()
    a = maker.conv(0, 3, 20, kernel, stride, same=True, padding=0)
    b = maker.conv(a, 20, 20, kernel, stride, same=True, padding=0, groups=groups)
    plan = maker.plan(maker.op("flatten", **{"in": maker.conv(b, 20, 3, 1, relu=False)}), 8)
    x = images(plan, size=size)
    agree(plan, x, kernels)
    agree(plan, x[:1], kernels, threads=2)


@pytest.mark.parametrize("pixels", [1, 6, 14, 70])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(kernels: dict[str, str], name: str, pixels: int) -> None:
    """At the end of every operation that has one, and alone; in rows of any length."""
    maker = plans.Maker(seed=2)
    x = maker.conv(0, 3, 48, 3, relu=False, activation=name)
    x = maker.conv(x, 48, 48, 3, relu=False, activation=name, residual=x)
    x = maker.conv(x, 48, 40, 1, relu=False, activation=name)
    x = maker.op(
        "affine", **{"in": x}, weight=maker.weight(40), bias=maker.weight(40), relu=False, activation=name
    )
    other = maker.op("activate", **{"in": x}, function=name)
    x = maker.op("add", **{"in": [x, other]}, relu=False, activation=name)
    v = maker.op("gap", **{"in": x})
    v = maker.op("linear", **{"in": v}, weight=maker.weight(70, 40), bias=None, relu=False, activation=name)
    v = maker.op("linear", **{"in": v}, weight=maker.weight(5, 70), bias=None, relu=False, activation=name)
    plan = maker.plan(maker.op("vmap", **{"in": v}, function=name), 8)
    agree(plan, images(plan, size=(3, pixels)), kernels)
    agree(plan, images(plan, 1, size=(3, pixels)), kernels, threads=2)


# GELU is a difference there: test_token_ops.py bounds its error.
@pytest.mark.parametrize("name", [*ACTIVATIONS[:5], "exp", "log"])
def test_functions_far_from_zero(kernels: dict[str, str], name: str) -> None:
    small = [-1e30, -200, -88.7, -87.4, -20, -6, -3, -1e-6]
    x = np.array([*small, 0, 1e-6, 3, 5.9, 6, 20, 80, 1e30], np.float32)
    x = abs(x) + 1e-3 if name == "log" else np.minimum(x, 80) if name == "exp" else x
    maker = plans.Maker(channels=1)
    plan = maker.plan(maker.op("vmap", **{"in": maker.op("flatten", **{"in": 0})}, function=name), 4)
    engine = Engine(plan, precision="float32", isa="auto" if kernels["isa"] == "amx" else kernels["isa"])
    with np.errstate(over="ignore"):
        expected = literal.run(plan, x.reshape(1, 1, 4, 4))[0]
    np.testing.assert_allclose(engine(x.reshape(1, 1, 4, 4)).logits, expected, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("size", [(11, 14), (3, 3), (30, 7), (64, 50)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_resizing_with_antialiasing(
    kernels: dict[str, str], channels: int, interpolation: str, size: tuple[int, int]
) -> None:
    """Of the image, cropped before and normalised anew afterwards, and of a map."""
    maker = plans.Maker(channels=channels)
    crop = maker.op("crop", **{"in": 0}, size=[max(size[0] - 3, 3), max(size[1] - 4, 3)])
    small = maker.op("resize", **{"in": crop}, size=[9, 9], interpolation=interpolation, antialias=True)
    weight, bias = maker.weight(channels, scale=1.0), maker.weight(channels)
    view = maker.op("affine", **{"in": small}, weight=weight, bias=bias, relu=False)
    a = maker.conv(view, channels, 24, 3, stride=2)
    b = maker.op("resize", **{"in": a}, size=[7, 4], interpolation=interpolation, antialias=True)
    plan = maker.plan(maker.op("flatten", **{"in": maker.conv(b, 24, 3, 1, relu=False)}), 9)
    x = images(plan, size=size)
    agree(plan, x, kernels)
    agree(plan, x[:1], kernels, threads=3)


def test_images_that_are_read_as_they_are_and_normalised_anew(kernels: dict[str, str]) -> None:
    """Two of them, whose places are not mixed up, beside one that is added and lies as other maps do."""
    maker = plans.Maker()
    views = []
    for _ in range(3):
        weight, bias = maker.weight(3, scale=1.0), maker.weight(3)
        views.append(maker.op("affine", **{"in": 0}, weight=weight, bias=bias, relu=False))
    total = maker.op("add", **{"in": [views[2], maker.conv(views[0], 3, 3, 5)]}, relu=False)
    features = [maker.conv(view, 3, 8, kernel) for view, kernel in ((0, 3), (views[1], 7), (total, 3))]
    plan = maker.plan(maker.op("gap", **{"in": maker.op("concat", **{"in": features})}), 8)
    agree(plan, images(plan, 5), kernels)
    agree(plan, images(plan, 1), kernels, threads=2)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    engine = Engine(plan, **kernels)
    normal = ((pixels / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(engine(pixels).logits, engine(normal).logits, atol=1e-2)


@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0), (1e4, -1e4, 0.0), (-np.inf, 0.0, 1.0)])
def test_answers_are_combined_without_overflow(scores: tuple[float, ...]) -> None:
    maker = plans.Maker(channels=1)
    said = maker.op("vlog_softmax", **{"in": maker.op("flatten", **{"in": 0})})
    plan = maker.plan(maker.op("vlogaddexp", **{"in": [said, said]}), 1)
    x = np.array(scores, np.float32).reshape(1, 1, 1, 3)
    expected = literal.run(plan, x)[0]
    np.testing.assert_allclose(Engine(plan, precision="float32")(x).logits, expected, rtol=1e-6)
