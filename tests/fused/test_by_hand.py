from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.fused.by_hand import blend_outputs, mean_over_space
from tests import strategies
from tests.reference import blend as reference


def operands(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = strategies.generator(seed)
    branch, skipped = (torch.randn(2, 2, 2, 3, generator=generator, dtype=dtype) for _ in range(2))
    execution = torch.rand(2, generator=generator, dtype=dtype)
    return tuple(t.requires_grad_() for t in (branch, skipped.abs().detach(), execution))


def test_blend_agrees_with_hand_arithmetic() -> None:
    branch = torch.tensor([1.0, -3.0]).view(2, 1, 1, 1)
    skipped = torch.tensor([2.0, 2.0]).view(2, 1, 1, 1)
    blended = blend_outputs(branch, skipped, torch.tensor([0.25, 0.25]))
    assert blended.flatten().tolist() == [0.25 * 3 + 0.75 * 2, 0.75 * 2]


def test_weight_one_is_exactly_the_executed_output_and_weight_zero_the_skipped() -> None:
    branch, skipped = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    blended = blend_outputs(branch, skipped, torch.tensor([1.0, 0.0]))
    assert torch.equal(blended[0], torch.relu(branch[0] + skipped[0]))
    assert torch.equal(blended[1], skipped[1])


@given(strategies.seeds)
def test_value_and_gradients_equal_the_literal_formula(seed: int) -> None:
    fast, slow = operands(seed), operands(seed)
    blended, literal = blend_outputs(*fast), reference.blend(*slow)
    torch.testing.assert_close(blended, literal)
    direction = torch.randn(blended.shape, generator=strategies.generator(seed), dtype=torch.float64)
    blended.backward(direction)
    literal.backward(direction)
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_pass_gradcheck() -> None:
    assert torch.autograd.gradcheck(blend_outputs, operands())


def test_an_expanded_gradient_is_accepted() -> None:
    fast, slow = operands(), operands()
    blend_outputs(*fast).sum().backward()
    reference.blend(*slow).sum().backward()
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_inputs_are_left_as_they_were() -> None:
    inputs = operands()
    copies = [t.detach().clone() for t in inputs]
    blend_outputs(*inputs).sum().backward()
    for now, before in zip(inputs, copies, strict=True):
        assert torch.equal(now.detach(), before)


def test_bfloat16_maps_stay_bfloat16_and_near_the_float32_result() -> None:
    branch, skipped, execution = (t.detach() for t in operands(dtype=torch.float32))
    low = blend_outputs(branch.bfloat16(), skipped, execution)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), blend_outputs(branch, skipped, execution), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_last_is_kept_forward_and_backward(batch: int) -> None:
    branch, skipped = (
        torch.rand(batch, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)
    )
    blended = blend_outputs(branch, skipped, torch.rand(batch))
    direction = torch.rand(batch, 4, 5, 5).to(memory_format=torch.channels_last)
    for tensor in (blended, *torch.autograd.grad(blended, (branch, skipped), direction)):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), strategies.seeds)
def test_mean_and_gradient_equal_torchs(
    batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    features = torch.randn(batch, channels, height, width, generator=strategies.generator(seed))
    fast, slow = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled, mean = mean_over_space(fast), slow.mean(dim=(2, 3))
    torch.testing.assert_close(pooled, mean)
    pooled.square().sum().backward()
    mean.square().sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_mean_passes_gradcheck(memory_format: torch.memory_format) -> None:
    features = torch.randn(2, 3, 4, 2, dtype=torch.float64).to(memory_format=memory_format)
    assert torch.autograd.gradcheck(mean_over_space, features.requires_grad_())


def test_an_expanded_or_transposed_gradient_of_the_mean_is_accepted() -> None:
    features = torch.rand(2, 3, 2, 2, requires_grad=True)
    mean_over_space(features).sum().backward()
    assert torch.equal(features.grad, torch.full((2, 3, 2, 2), 0.25))
    features.grad = None
    mean_over_space(features).backward(torch.arange(6.0).view(3, 2).T)
    torch.testing.assert_close(features.grad[1, 2], torch.full((2, 2), 5 / 4))


def test_the_mean_is_the_same_with_and_without_gradient() -> None:
    features = torch.randn(2, 3, 4, 4)
    with_gradient = mean_over_space(features.clone().requires_grad_()).detach()
    assert torch.equal(with_gradient, mean_over_space(features))


def test_a_mean_in_bfloat16_stays_so() -> None:
    features = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    pooled = mean_over_space(features)
    pooled.sum().backward()
    assert pooled.dtype == features.grad.dtype == torch.bfloat16


def test_the_means_gradient_of_channels_last_features_is_channels_last() -> None:
    features = torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(mean_over_space(features).square().sum(), features)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
