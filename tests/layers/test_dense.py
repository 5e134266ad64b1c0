from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sidestep.layers.dense import (
    DenseBlock,
    DenseLayer,
    FusionBlock,
    FusionLayer,
    bottleneck,
    concat,
    conv_basic,
    resize,
)
from tests.doubles import enliven
from tests.reference import multi_scale as literal


def maps(channels: int, size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def lively(module: nn.Module) -> nn.Module:
    enliven(module)
    return module.eval()


def named(module: nn.Module, name: str = "part") -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [None, 1, 3])
def test_a_bottleneck_equals_the_literal_one(width: int | None, stride: int) -> None:
    module, x = lively(bottleneck(6, 4, width=width, stride=stride)), maps(6, 7)
    with torch.no_grad():
        torch.testing.assert_close(module(x), literal.bottleneck(named(module), "part", x, stride=stride))


def test_a_bottleneck_is_never_wider_than_its_input() -> None:
    assert [bottleneck(6, 4, width=width)[0].out_channels for width in (1, 2, 3)] == [4, 6, 6]
    assert len(bottleneck(6, 4, width=None)) == len(conv_basic(6, 4, 3)) == 3


def test_resizing_is_bilinear_between_the_corner_pixels() -> None:
    x = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    expected = torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]])
    assert torch.equal(resize(x, (3, 3))[0, 0], expected)
    assert resize(x, (2, 2)) is x
    assert torch.equal(resize(expected[None, None], (2, 2)), x)


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_a_single_channel_keeps_its_neighbours_memory_format(form: torch.memory_format) -> None:
    x, lone = maps(4, 6).to(memory_format=form), maps(1, 6)
    out = concat(x, lone, x)
    assert torch.equal(out, torch.cat([x, lone, x], dim=1))
    assert out.is_contiguous(memory_format=form)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("reads_finer", [False, True])
def test_a_layer_of_msdnet_equals_the_literal_one(reads_finer: bool, mixes: bool) -> None:
    down = bottleneck(3, 2, width=1, stride=2) if reads_finer else None
    own = bottleneck(6, 4, width=2)
    out_channels = 12 if reads_finer else 10
    layer = lively(DenseLayer(own, down=down, transition=conv_basic(out_channels, 5, 1) if mixes else None))
    x, finer, state = maps(6, 4), maps(3, 8), named(layer)
    with torch.no_grad():
        parts = [x, literal.bottleneck(state, "part.own", x)]
        if reads_finer:
            parts.insert(1, literal.bottleneck(state, "part.down", finer, stride=2))
        expected = torch.cat(parts, dim=1)
        assert expected.shape[1] == out_channels
        if mixes:
            expected = literal.conv_basic(state, "part.transition", expected)
        torch.testing.assert_close(layer(x, finer), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("low_size", [2, 4, 5])
def test_a_fusion_layer_resizes_the_features_before_and_its_own(low_size: int, stride: int) -> None:
    layer = lively(FusionLayer(own=bottleneck(6, 3, width=2, stride=stride), low=bottleneck(8, 1, width=4)))
    x, z, state = maps(6, 8), maps(8, low_size), named(layer)
    with torch.no_grad():
        own = literal.bottleneck(state, "part.own", x, stride=stride)
        low = literal.upsample(literal.bottleneck(state, "part.low", z), own)
        expected = torch.cat([literal.upsample(x, own), low, own], dim=1)
        torch.testing.assert_close(layer(x, z), expected)
    assert expected.shape == (2, 10, 8 // stride, 8 // stride)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_a_fusion_block_of_ranet_equals_the_literal_one(halves: bool, mixes: bool) -> None:
    layers = [
        FusionLayer(
            own=bottleneck(4 + 3 * q, 2, width=2, stride=2 if halves and q == 2 else 1),
            low=bottleneck(5 + 2 * q, 1, width=4),
        )
        for q in range(3)
    ]
    block = lively(FusionBlock(layers, conv_basic(11, 3, 1), conv_basic(16, 8, 1) if mixes else None))
    x, lows, state = maps(4, 8), [maps(5 + 2 * q, 4) for q in range(4)], named(block)
    with torch.no_grad():
        *features, expected = literal.fusion_block(state, "part", x, lows, halves=halves)
        if mixes:
            expected = literal.conv_basic(state, "part.transition", expected)
        out, kept = block(x, lows)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(list(kept), features)
    assert kept[0] is x


@pytest.mark.parametrize("mixes", [False, True])
def test_a_dense_block_equals_the_literal_one(mixes: bool) -> None:
    layers = [DenseLayer(bottleneck(4 + 3 * q, 3, width=2)) for q in range(3)]
    block = lively(DenseBlock(layers, conv_basic(13, 6, 1) if mixes else None))
    x, state = maps(4, 5), named(block)
    with torch.no_grad():
        *features, expected = literal.dense_block(state, "part", x, 3)
        if mixes:
            expected = literal.conv_basic(state, "part.transition", expected)
        out, kept = block(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(list(kept), features)
