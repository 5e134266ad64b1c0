from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidestep.errors import RecipeError
from sidestep.layers.squeeze_excite import SqueezeExcite, check_se_ratio
from tests import strategies
from tests.reference import squeeze_excite as reference


def test_two_channels_are_scaled_as_by_hand() -> None:
    se = SqueezeExcite(2, 2)
    with torch.no_grad():
        se.fc1.weight.copy_(torch.tensor([[1.0, -1.0]]))
        se.fc1.bias.fill_(0.5)
        se.fc2.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        se.fc2.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]], [[[0.0, 0.0]], [[9.0, 9.0]]]])
    # Means 2 and 1 give a hidden 1.5; means 0 and 9 give one that relu cuts off.
    scales = [[1 / (1 + math.exp(-3.0)), 1 / (1 + math.exp(0.5))], [0.5, 1 / (1 + math.exp(-1.0))]]
    torch.testing.assert_close(se(x), x * torch.tensor(scales)[:, :, None, None])


@given(st.integers(1, 3), st.sampled_from([(4, 1), (4, 2), (5, 2), (16, 16)]), strategies.seeds)
def test_value_and_gradients_equal_the_literal_formula(batch: int, shape: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    se = SqueezeExcite(*shape).double()
    x = torch.randn(batch, shape[0], 2, 3, dtype=torch.float64)
    results = []
    for literal in (False, True):
        features = x.clone().requires_grad_()
        se.zero_grad()
        out = reference.squeeze_excite(features, dict(se.named_parameters())) if literal else se(features)
        out.square().sum().backward()
        results.append([out, features.grad, *[p.grad for p in se.parameters()]])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("ratio", [1, 4, 16])
def test_the_hidden_layer_divides_the_channels_and_has_biases(ratio: int) -> None:
    hidden = 64 // ratio
    parameters = sum(p.numel() for p in SqueezeExcite(64, ratio).parameters())
    assert parameters == 2 * 64 * hidden + hidden + 64


def test_in_inference_mode_the_map_is_reused_for_the_same_values() -> None:
    se, x = SqueezeExcite(4, 2), torch.randn(3, 4, 5, 5)
    expected = se(x).detach()
    with torch.inference_mode():
        own = x.clone()
        out = se(own)
        assert torch.equal(out, expected)
        assert out.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_last_is_kept_forward_and_backward(batch: int) -> None:
    x = torch.rand(batch, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    out = SqueezeExcite(4, 2)(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_stays_bfloat16() -> None:
    se, x = SqueezeExcite(4, 2).bfloat16(), torch.rand(2, 4, 3, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SqueezeExcite(4, 2)(x).dtype == torch.bfloat16
    assert se(x).dtype == torch.bfloat16


@pytest.mark.parametrize("ratio", [None, 1, 16])
def test_ratios_that_leave_a_hidden_layer_are_fine(ratio: int | None) -> None:
    check_se_ratio(ratio, 16)
    assert ratio is None or isinstance(SqueezeExcite(16, ratio), nn.Module)


@pytest.mark.parametrize("ratio", [0, -4, 17])
def test_ratios_that_leave_none_are_refused_with_a_way_out(ratio: int) -> None:
    message = f"se_ratio must be from 1 to 16, the channels of the narrowest block, got {ratio}; the paper"
    with pytest.raises(RecipeError, match=message):
        check_se_ratio(ratio, 16)
