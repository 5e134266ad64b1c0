from __future__ import annotations

import pytest
import torch
from hypothesis import given

from sidestep.layers.blend import blend_outputs
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
