from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidestep.layers.shortcut import PadShortcut, PoolShortcut, Shortcut, make_shortcut
from tests import strategies
from tests.reference import shortcut as reference

WITHOUT_PARAMETERS = ["A", "pool_end", "pool_both"]


def test_option_a_takes_every_second_pixel_and_pads_half_before_and_half_after() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 4, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert out[0, 0].abs().sum() == out[0, 3].abs().sum() == 0


def test_pooling_takes_means_of_squares_and_puts_zeros_where_it_is_told() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    for zeros, places in (("end", (0, 1)), ("both", (1, 2))):
        out = PoolShortcut(2, 4, 2, zeros=zeros)(x)
        assert out.shape == (1, 4, 2, 2)
        assert out[0, places[0]].tolist() == [[2.5, 4.5], [10.5, 12.5]]
        assert out[0, places[1]].tolist() == [[18.5, 20.5], [26.5, 28.5]]
        assert sorted(out[0].sum(dim=(1, 2)).tolist()) == [0.0, 0.0, 30.0, 94.0]


def test_squares_at_the_edge_of_an_odd_map_are_smaller() -> None:
    out = PoolShortcut(1, 1, 2, zeros="end")(torch.arange(15.0).view(1, 1, 3, 5))
    assert out[0, 0].tolist() == [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]


@pytest.mark.parametrize(
    ("option", "before", "after"), [("A", 8, 8), ("pool_end", 0, 16), ("pool_both", 8, 8)]
)
def test_sixteen_new_channels_are_zeros_on_the_sides_that_the_papers_name(
    option: Shortcut, before: int, after: int
) -> None:
    out = make_shortcut(16, 32, stride=2, option=option)(torch.ones(1, 16, 4, 4))
    assert out[0, :, 0, 0].tolist() == [0.0] * before + [1.0] * 16 + [0.0] * after


@pytest.mark.parametrize("option", WITHOUT_PARAMETERS)
@given(
    st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.data()
)
def test_every_pixel_equals_the_literal_one(
    option: Shortcut, channels: int, new: int, stride: int, height: int, width: int, data: st.DataObject
) -> None:
    shortcut = make_shortcut(channels, channels + new, stride=stride, option=option)
    generator = strategies.generator(data.draw(strategies.seeds))
    x = torch.randn(2, channels, height, width, generator=generator)
    expected = reference.shortcut(x, channels + new, stride, option)
    torch.testing.assert_close(x if shortcut is None else shortcut(x), expected)


@pytest.mark.parametrize("option", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_a_shortcut_has_the_size_of_a_strided_convolution(
    size: tuple[int, int], stride: int, option: Shortcut
) -> None:
    x = torch.rand(1, 2, *size)
    branch = nn.Conv2d(2, 4, 3, stride=stride, padding=1)(x)
    assert make_shortcut(2, 4, stride=stride, option=option)(x).shape == branch.shape


@pytest.mark.parametrize("option", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_passes_gradcheck(
    size: tuple[int, int], memory_format: torch.memory_format, stride: int, option: Shortcut
) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64).to(memory_format=memory_format)
    shortcut = make_shortcut(2, 5, stride=stride, option=option)
    assert torch.autograd.gradcheck(shortcut, x.requires_grad_())


@pytest.mark.parametrize("option", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("size", [4, 5])
def test_values_are_the_same_with_and_without_gradient(size: int, option: Shortcut) -> None:
    x, shortcut = torch.randn(2, 2, size, size), make_shortcut(2, 4, stride=2, option=option)
    assert torch.equal(shortcut(x.clone().requires_grad_()).detach(), shortcut(x))


@pytest.mark.parametrize("option", WITHOUT_PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 6), (2, 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_channels_last_is_kept_forward_and_backward(
    batch: int, size: tuple[int, int], dtype: torch.dtype, option: Shortcut
) -> None:
    x = torch.rand(batch, 4, *size, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    out = make_shortcut(4, 8, stride=2, option=option)(x)
    direction = torch.rand(out.shape).to(dtype, memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(out, x, direction)
    assert out.dtype == gradient.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("option", "count"), [*((o, 0) for o in WITHOUT_PARAMETERS), ("B", 16 * 32 + 2 * 32)]
)
def test_only_the_projection_has_parameters(option: Shortcut, count: int) -> None:
    shortcut = make_shortcut(16, 32, stride=2, option=option)
    assert sum(p.numel() for p in shortcut.parameters()) == count


@pytest.mark.parametrize("option", [*WITHOUT_PARAMETERS, "B"])
def test_where_the_shape_is_kept_there_is_none(option: Shortcut) -> None:
    assert make_shortcut(4, 4, stride=1, option=option) is None
    assert make_shortcut(4, 4, stride=2, option=option) is not None
    assert make_shortcut(4, 8, stride=1, option=option) is not None
