"""What ViTs and ConvNeXts are made of, against NumPy, on every instruction set that this processor has."""

from __future__ import annotations

import literal
import numpy as np
import plans
import pytest
from sidestep_engine import Engine, Plan, PlanError
from test_ops import agree, images


def with_halo(maker: plans.Maker, x: int, channels: int) -> int:
    """Return a map through a convolution of 3 x 3, which gives all maps of a plan a halo."""
    return maker.conv(x, channels, channels, 3, relu=False)


@pytest.mark.parametrize("size", [(5, 7), (3, 1), (1, 16)])
@pytest.mark.parametrize("channels", [1, 3, 16, 40, 100, 192])
@pytest.mark.parametrize("halo", [False, True])
def test_layer_norm(kernels: dict[str, str], channels: int, size: tuple[int, int], halo: bool) -> None:
    """Of channels far from 0, some of which end in the middle of a vector, and of the image itself."""
    maker = plans.Maker(channels=channels)
    x = maker.op(
        "layer_norm", **{"in": 0}, weight=maker.weight(channels), bias=maker.weight(channels), eps=0.1
    )
    x = with_halo(maker, x, channels) if halo else maker.conv(x, channels, channels, 1, relu=False)
    x = maker.op("add", **{"in": [x, x]}, relu=False, activation="sigmoid")
    weight, bias = maker.weight(channels), maker.weight(channels)
    # In few digits little may be made of small differences.
    eps = 1e-3 if kernels["precision"] == "float32" else 0.3
    x = maker.op("layer_norm", **{"in": x}, weight=weight, bias=bias, eps=eps)
    plan = maker.plan(maker.op("flatten", **{"in": x}), 8)
    for x_all in (images(plan, size=size), images(plan, 1, size=size)):
        agree(plan, 20 + x_all if kernels["precision"] == "float32" else x_all, kernels)
        agree(plan, x_all[:1], kernels, threads=2)


def attending(heads: int, size: int, scale: float, halo: bool) -> Plan:
    maker = plans.Maker(seed=3)
    channels = heads * size
    x = maker.conv(0, 3, 16, 3 if halo else 1, relu=False)
    weight = maker.weight(3 * channels, 16, 1, 1, scale=scale)
    x = maker.op("conv", **{"in": x}, weight=weight, bias=None, stride=1, groups=1)
    x = maker.op("attention", **{"in": x}, heads=heads)
    return maker.plan(maker.op("flatten", **{"in": maker.conv(x, channels, 5, 1, relu=False)}), 8)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (33, 1), (4, 17), (70, 1)])
@pytest.mark.parametrize(("heads", "entries"), [(1, 16), (3, 64), (2, 24), (5, 7), (1, 1), (2, 100)])
@pytest.mark.parametrize("halo", [False, True])
def test_attention(
    kernels: dict[str, str], heads: int, entries: int, size: tuple[int, int], halo: bool
) -> None:
    plan = attending(heads, entries, 0.3, halo)
    agree(plan, images(plan, 2, size=size), kernels)
    agree(plan, images(plan, 1, size=size), kernels, threads=3)


def test_attention_to_one_key_alone_is_what_it_says(kernels: dict[str, str]) -> None:
    """Scores of thousands, whose powers would be infinite."""
    maker = plans.Maker(channels=3)
    plan = maker.plan(maker.op("flatten", **{"in": maker.op("attention", **{"in": 0}, heads=1)}), 2)
    x = np.zeros((1, 3, 4, 1), np.float32)
    x[0, 0], x[0, 1, :, 0], x[0, 2, :, 0] = 100, [-90, 10, 90, 20], [1, 2, 3, 4]
    np.testing.assert_array_equal(Engine(plan, **kernels)(x).logits, np.full((1, 4), 3.0))


@pytest.mark.parametrize("what", ["query", "key"])
def test_what_is_no_number_reaches_those_alone_who_ask_it(kernels: dict[str, str], what: str) -> None:
    maker = plans.Maker(channels=3)
    plan = maker.plan(maker.op("flatten", **{"in": maker.op("attention", **{"in": 0}, heads=1)}), 2)
    x = images(plan, 1, size=(6, 1))
    engine = Engine(plan, **kernels)
    clean = engine(x).logits
    broken = x.copy()
    broken[0, 0 if what == "query" else 1, 2] = np.nan
    said = np.isnan(engine(broken).logits)
    np.testing.assert_array_equal(said[0], [what == "key" or n == 2 for n in range(6)])
    np.testing.assert_array_equal(engine(x).logits, clean)


@pytest.mark.parametrize("front", [0, 1, 5])
@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("halo", [False, True])
def test_tokens_and_means_of_some(kernels: dict[str, str], front: int, channels: int, halo: bool) -> None:
    maker = plans.Maker(seed=5)
    x = 0 if channels == 3 else maker.conv(0, 3, channels, 3 if halo else 1)
    x = maker.op("tokens", **{"in": x}, weight=maker.weight(front + 12, channels))
    some = [
        maker.op("gap", **{"in": x}, first=first, rows=rows) for first, rows in ((0, 1), (front, 0), (2, 9))
    ]
    whole = maker.op("gap", **{"in": x})
    ends = maker.op("flatten", **{"in": x})
    count = channels * (4 + front + 12)
    plan = maker.plan(maker.op("vgather", **{"in": [*some, whole, ends]}, indices=list(range(count))), 4)
    for threads in (1, 3):
        agree(plan, images(plan, 2, size=(3, 4)), kernels, threads)
        agree(plan, images(plan, 1, size=(3, 4)), kernels, threads)
    with pytest.raises(
        PlanError, match=f"op tokens .* has {front + 12} rows of weights for the pixels of a map"
    ):
        Engine(plan, **kernels)(images(plan, 1, size=(5, 5)))


def test_gelu_is_right_to_two_millionths_and_in_bfloat16_to_far_less_than_it_rounds(
    kernels: dict[str, str],
) -> None:
    maker = plans.Maker(channels=1)
    flat = maker.op("flatten", **{"in": 0})
    both = [maker.op("vmap", **{"in": flat}, function=name) for name in ("gelu", "gelu_tanh")]
    plan = maker.plan(maker.op("vgather", **{"in": both}, indices=list(range(2 * 4096))), 64)
    x = np.linspace(-12, 12, 4096, dtype=np.float32).reshape(1, 1, 64, 64)
    in_float32 = kernels["precision"] == "float32"
    if not in_float32:
        # The image is rounded; vectors are not, but go through the shorter polynomial of maps.
        x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    atol, rtol, far_rtol = (2e-6, 1e-6, 1e-7) if in_float32 else (5e-5, 5e-6, 5e-6)
    expected, _, _ = literal.run(plan, x)
    np.testing.assert_allclose(Engine(plan, **kernels)(x).logits, expected, atol=atol, rtol=rtol)
    far = np.array([-(2.0**100), -(2.0**13), 2.0**13, 2.0**100], np.float32).reshape(1, 1, 2, 2)
    maker = plans.Maker(channels=1)
    flat = maker.op("flatten", **{"in": 0})
    for name in ("gelu", "gelu_tanh"):
        ends = maker.plan(maker.op("vmap", **{"in": flat}, function=name), 2)
        said = Engine(ends, **kernels)(far).logits[0]
        np.testing.assert_allclose(said, [0, 0, 2.0**13, 2.0**100], atol=atol, rtol=far_rtol)


def vision_transformer(depth: int = 2, heads: int = 3, size: int = 16) -> Plan:
    """Return a ViT with gates, whose units end in additions of convolutions."""
    maker = plans.Maker(seed=2)
    channels = heads * size
    x = maker.conv(0, 3, channels, 4, stride=4, relu=False, padding=0)
    x = maker.op("tokens", **{"in": x}, weight=maker.weight(17, channels, scale=0.5))
    for _ in range(depth):
        scores = maker.linear(maker.op("gap", **{"in": x}), channels, 2)
        x = maker.choose(scores, [lambda x=x: [x], lambda x=x: _block(maker, x, channels, heads)])[0]
    weight, bias = maker.weight(channels), maker.weight(channels)
    x = maker.op("layer_norm", **{"in": x}, weight=weight, bias=bias, eps=1e-6)
    return maker.plan(maker.linear(maker.op("gap", **{"in": x}, first=0, rows=1), channels, 10), 16)


def _block(maker: plans.Maker, x: int, channels: int, heads: int) -> list[int]:
    def normal(x: int) -> int:
        weight, bias = maker.weight(channels, scale=1.0), maker.weight(channels)
        return maker.op("layer_norm", **{"in": x}, weight=weight, bias=bias, eps=1e-6)

    qkv = maker.conv(normal(x), channels, 3 * channels, 1, relu=False)
    x = maker.conv(
        maker.op("attention", **{"in": qkv}, heads=heads), channels, channels, 1, relu=False, residual=x
    )
    hidden = maker.conv(normal(x), channels, 4 * channels, 1, relu=False, activation="gelu")
    return [maker.conv(hidden, 4 * channels, channels, 1, relu=False, residual=x)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_vision_transformers_with_gates(kernels: dict[str, str], count: int, threads: int) -> None:
    plan = vision_transformer()
    x = images(plan, count)
    if count == 9:
        assert len(np.unique(literal.run(plan, x)[1])) == 2
    agree(plan, x, kernels, threads)
