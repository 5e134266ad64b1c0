from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.layers.pool import global_average_pool
from tests import strategies


def test_pool_agrees_with_hand_arithmetic() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    assert global_average_pool(features).tolist() == [[3.0, 1.0]]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), strategies.seeds)
def test_value_and_gradient_equal_the_mean(
    batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    features = torch.randn(batch, channels, height, width, generator=strategies.generator(seed))
    fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled, mean = global_average_pool(fast), slow.mean(dim=(2, 3))
    torch.testing.assert_close(pooled, mean)
    pooled.square().sum().backward()
    mean.square().sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_passes_gradcheck(memory_format: torch.memory_format) -> None:
    features = torch.randn(2, 3, 4, 2, dtype=torch.float64).to(memory_format=memory_format)
    assert torch.autograd.gradcheck(global_average_pool, features.requires_grad_())


def test_an_expanded_or_transposed_gradient_is_accepted() -> None:
    features = torch.rand(2, 3, 2, 2, requires_grad=True)
    global_average_pool(features).sum().backward()
    assert torch.equal(features.grad, torch.full((2, 3, 2, 2), 0.25))
    features.grad = None
    global_average_pool(features).backward(torch.arange(6.0).view(3, 2).T)
    torch.testing.assert_close(features.grad[1, 2], torch.full((2, 2), 5 / 4))


def test_pooling_is_the_same_with_and_without_gradient() -> None:
    features = torch.randn(2, 3, 4, 4)
    with_gradient = global_average_pool(features.clone().requires_grad_()).detach()
    assert torch.equal(with_gradient, global_average_pool(features))


def test_bfloat16_stays_bfloat16() -> None:
    features = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    pooled = global_average_pool(features)
    pooled.sum().backward()
    assert pooled.dtype == features.grad.dtype == torch.bfloat16


def test_gradient_of_channels_last_features_is_channels_last() -> None:
    features = torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(global_average_pool(features).square().sum(), features)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_tokens_are_averaged_over_all_of_them() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]], requires_grad=True)
    pooled = global_average_pool(tokens)
    assert pooled.tolist() == [[3.0, 3.0]]
    pooled.sum().backward()
    torch.testing.assert_close(tokens.grad, torch.full((1, 3, 2), 1 / 3))
