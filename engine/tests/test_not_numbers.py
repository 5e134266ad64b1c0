"""NaN and infinity: what is no number stays none up to the scores, whatever lies between, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan

ACTIVATIONS = ("relu6", "silu", "hard_swish", "hard_sigmoid", "sigmoid", "gelu", "gelu_tanh")


def images(count: int = 3, size: int = 12) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, size, size)).astype(np.float32)


def one_pixel(value: float, size: int = 12) -> np.ndarray:
    """Return images of which the second has one channel of one pixel in the middle that is no number."""
    x = images(size=size)
    x[1, 1, size // 2, size // 2] = value
    return x


def op(kind: str, **fields: Any) -> Callable[[plans.Maker, int], int]:
    return lambda maker, x: maker.op(kind, **{"in": x}, **fields)


def conv(outputs: int, kernel: int, **fields: Any) -> Callable[[plans.Maker, int], int]:
    return lambda maker, x: maker.conv(x, 20, outputs, kernel, **fields)


def other(maker: plans.Maker, channels: int = 20) -> int:
    """Return another map of the image."""
    return maker.conv(0, 3, channels, relu=False)


def gated(maker: plans.Maker, x: int) -> int:
    gate = maker.op("vmap", **{"in": maker.op("gap", **{"in": x})}, function="sigmoid")
    return maker.op("scale", **{"in": [other(maker), gate]})


def normal(maker: plans.Maker, x: int) -> int:
    return maker.op("layer_norm", **{"in": x}, weight=maker.weight(20), bias=maker.weight(20), eps=1e-5)


# What stands between a map of 20 channels and its means: how many channels it makes, and how.
ON_MAPS: dict[str, tuple[int, Callable[[plans.Maker, int], int]]] = {
    "relu": (20, op("relu")),
    "leaky relu": (20, op("relu", slope=0.2)),
    "conv and relu": (24, conv(24, 3)),
    "strided conv": (24, conv(24, 3, stride=2)),
    "conv of 1 x 1": (24, conv(24, 1)),
    "conv of 5 x 5, leaky": (40, conv(40, 5, slope=0.1)),
    "groups": (20, conv(20, 3, groups=4)),
    "residual": (20, lambda maker, x: maker.conv(other(maker), 20, 20, residual=x)),
    "max_pool": (20, op("max_pool", kernel=3, stride=2, padding=1)),
    "avg_pool": (20, op("avg_pool", kernel=2, stride=2, ceil=True)),
    "affine": (
        20,
        lambda maker, x: op("affine", weight=maker.weight(20), bias=maker.weight(20), relu=True)(maker, x),
    ),
    "add": (20, lambda maker, x: maker.op("add", **{"in": [x, other(maker)]}, relu=True)),
    "pad": (24, op("pad", stride=1, before=2, after=2)),
    "concat": (24, lambda maker, x: maker.op("concat", **{"in": [x, other(maker, 4)]})),
    "resize": (20, op("resize", size=[24, 24], align_corners=False)),
    "scale": (20, gated),
    "crop": (20, op("crop", size=[4, 4])),
    "layer_norm": (20, lambda maker, x: normal(maker, x)),
    "tokens": (20, lambda maker, x: op("tokens", weight=maker.weight(145, 20))(maker, x)),
    "attention": (20, lambda maker, x: op("attention", heads=4)(maker, maker.conv(x, 20, 60, 1))),
    "resize with antialiasing": (20, op("resize", size=[5, 7], interpolation="bicubic", antialias=True)),
    "depthwise": (20, conv(20, 3, groups=20)),
    "depthwise of 9 x 9": (20, conv(20, 9, groups=20)),
    **{
        f"{name} at the end of {what}": (20, conv(20, 1, groups=groups, relu=False, activation=name))
        for name in ACTIVATIONS
        for what, groups in (("conv", 1), ("depthwise", 20))
    },
    **{name: (20, op("activate", function=name)) for name in ACTIVATIONS},
}
# What stands between 20 means and the last layer.
ON_VECTORS: dict[str, tuple[int, Callable[[plans.Maker, int], int]]] = {
    "vector relu": (20, op("vmap", function="relu")),
    "vector leaky relu": (20, op("vmap", function="relu", slope=0.5)),
    "vadd": (20, lambda maker, v: maker.op("vadd", **{"in": [v, v]}, alpha=1.0, relu=True)),
    "vclamp_min": (20, op("vclamp_min", min=0.1)),
    "linear and relu": (80, lambda maker, v: maker.linear(v, 20, 80, relu=True)),
    "few outputs": (3, lambda maker, v: maker.linear(v, 20, 3, relu=True)),
    "vdiv": (20, lambda maker, v: maker.op("vdiv", **{"in": [v, maker.op("vsum", **{"in": v})]})),
    "vlog_softmax": (20, op("vlog_softmax")),
    "vlogaddexp": (20, lambda maker, v: maker.op("vlogaddexp", **{"in": [v, v]})),
    **{f"vector {name}": (20, op("vmap", function=name)) for name in ACTIVATIONS},
    **{name: (20, op("vmap", function=name)) for name in ("tanh", "exp", "sqrt", "log")},
}


def with_op(name: str) -> Plan:
    """Return a plan with one operation on the way from the image to the scores."""
    maker, channels = plans.Maker(), 20
    x = other(maker)
    if name in ON_MAPS:
        channels, make = ON_MAPS[name]
        x = make(maker, x)
    v = maker.op("gap", **{"in": x})
    if name in ON_VECTORS:
        channels, make = ON_VECTORS[name]
        v = make(maker, v)
    return maker.plan(maker.linear(v, channels, 6), 12)


@pytest.mark.parametrize("name", [*ON_MAPS, *ON_VECTORS])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_one_pixel_that_is_no_number_makes_all_scores_of_its_image_none(
    name: str, kernels: dict[str, Any]
) -> None:
    plan, x = with_op(name), one_pixel(np.nan)
    for threads in (1, 2):
        engine = Engine(plan, num_threads=threads, **kernels)
        clean = engine(images()).logits
        spoilt = engine(x).logits
        assert np.isnan(spoilt[1]).all()
        np.testing.assert_array_equal(spoilt[[0, 2]], clean[[0, 2]])
        assert np.isnan(engine(x[1:2]).logits).all()
        # Memory that was used for it is used again.
        np.testing.assert_array_equal(engine(images()).logits, clean)
        np.testing.assert_array_equal(engine(images()[:1]).logits, engine(images()[:1]).logits)
        assert np.isfinite(engine(images()[:1]).logits).all() == np.isfinite(clean[0]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_network_that_has_seen_what_is_no_number_is_as_before(
    value: float, threads: int, kernels: dict[str, Any]
) -> None:
    for plan in (plans.routed_resnet(2, (16, 32), seed=3), plans.every_kind()):
        engine = Engine(plan, num_threads=threads, **kernels)
        size = plan.size[0]
        x = images(9, size)
        before, alone = engine(x).logits, engine(x[:1]).logits
        engine(np.full_like(x, value))
        engine(np.full_like(x[:1], value))
        engine(one_pixel(value, size))
        np.testing.assert_array_equal(engine(x).logits, before)
        np.testing.assert_array_equal(engine(x[:1]).logits, alone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_routed_networks_say_that_it_is_none(value: float, kernels: dict[str, Any]) -> None:
    engine = Engine(plans.routed_resnet(2, (16, 32), seed=3), **kernels)
    x = np.full((2, 3, 32, 32), value, np.float32)
    assert np.isnan(engine(x).logits).all() and np.isnan(engine(x).probabilities).all()


def scores_plan(criterion: str | None = None, threshold: float = 0.0) -> Plan:
    """Return a plan whose scores are the image's two pixels: chosen about, or left by."""
    maker = plans.Maker(channels=1)
    v = maker.op("flatten", **{"in": 0})
    if criterion is None:
        low, high = (maker.op("vconst", weight=maker.weight(2)) for _ in range(2))
        v = maker.choose(v, [lambda: [low], lambda: [high]])[0]
    else:
        leave = {"logits": v, "criterion": criterion, "threshold": threshold, "temperature": 1.0}
        maker.steps.append({"exit": leave})
    return maker.plan(v, 8)


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ((1.0, np.nan), 1), ((np.nan, 1.0), 0), ((np.nan, np.nan), 0), ((np.inf, np.nan), 1),
        ((np.inf, np.inf), 0), ((-np.inf, -np.inf), 0), ((-np.inf, 0.0), 1), ((2.0, 2.0), 0), ((1.0, 2.0), 1),
    ],
)  # fmt: skip
def test_a_score_that_is_no_number_is_the_largest_as_in_pytorch(
    scores: tuple[float, float], wanted: int
) -> None:
    x = np.array(scores, np.float32).reshape(1, 1, 1, 2)
    assert np.argmax(scores) == wanted  # NumPy's rule is PyTorch's
    assert Engine(scores_plan(), precision="float32")(x).options.tolist() == [[wanted]]


@pytest.mark.parametrize(("criterion", "threshold"), [("confidence", 0.0), ("margin", 0.0), ("entropy", 9.0)])
@pytest.mark.parametrize("scores", [(1.0, np.nan), (np.nan, 1.0), (np.nan, np.nan), (np.inf, np.inf)])
def test_no_image_leaves_with_scores_that_are_no_numbers(
    criterion: str, threshold: float, scores: tuple[float, float]
) -> None:
    engine = Engine(scores_plan(criterion, threshold), precision="float32")
    output = engine(np.array([scores, (0.0, 1.0)], np.float32).reshape(2, 1, 1, 2))
    assert output.exits.tolist() == [1, 0]
    assert np.isnan(output.probabilities[0]).all() and np.isfinite(output.probabilities[1]).all()


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_infinite_and_no_warning() -> None:
    engine = Engine(scores_plan(), precision="float32")
    assert engine(np.array([0.0, 1e300]).reshape(1, 1, 1, 2)).options.tolist() == [[1]]
