from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.layers.residual import BasicBlock, PadShortcut
from tests import strategies
from tests.doubles import enliven
from tests.reference import blend as reference

SHORTCUTS: list[tuple[int, Literal["A", "B"]]] = [(1, "A"), (2, "A"), (2, "B")]


def scaling_block(factor: float) -> BasicBlock:
    """Return a block of one channel whose branch is `factor` times its non-negative input."""
    block = BasicBlock(1, 1, stride=1, stage=0).eval()
    for conv, centre in ((block.conv1, 1.0), (block.conv2, factor)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = centre
    block.bn1.eps = block.bn2.eps = 0.0
    return block


def lively_block(stride: int, option: Literal["A", "B"]) -> BasicBlock:
    block = BasicBlock(2, 2 * stride, stride=stride, stage=0, option=option)
    enliven(block)
    return block.eval()


def gates(*execution: float) -> Tensor:
    weight = torch.tensor(execution)
    return torch.stack([1 - weight, weight], dim=1)


def test_option_a_takes_every_second_pixel_and_pads_half_before_and_half_after() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 4)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert out[0, 0].abs().sum() == out[0, 3].abs().sum() == 0


def test_option_a_of_sixteen_channels_puts_eight_zeros_on_each_side() -> None:
    out = PadShortcut(16, 32)(torch.ones(1, 16, 4, 4))
    assert out[0, :, 0, 0].tolist() == [0.0] * 8 + [1.0] * 16 + [0.0] * 8


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_option_a_passes_gradcheck(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64).to(memory_format=memory_format)
    assert torch.autograd.gradcheck(PadShortcut(2, 6), x.requires_grad_())


@pytest.mark.parametrize("size", [4, 5])
def test_option_a_is_the_same_with_and_without_gradient(size: int) -> None:
    x = torch.randn(2, 2, size, size)
    assert torch.equal(PadShortcut(2, 4)(x.clone().requires_grad_()).detach(), PadShortcut(2, 4)(x))


@pytest.mark.parametrize("batch", [1, 3])
def test_option_a_keeps_channels_last_forward_and_backward(batch: int) -> None:
    x = torch.rand(batch, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    out = PadShortcut(4, 8)(x)
    direction = torch.rand(out.shape).to(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(out, x, direction)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_option_a_has_no_parameters_and_option_b_a_convolution_with_batch_norm() -> None:
    plain, option_a, option_b = (
        sum(
            p.numel() for p in BasicBlock(16, 16 * stride, stride=stride, stage=1, option=option).parameters()
        )
        for stride, option in ((1, "B"), (2, "A"), (2, "B"))
    )
    assert plain == 2 * (16 * 16 * 9 + 2 * 16)
    assert option_a == 16 * 32 * 9 + 32 * 32 * 9 + 2 * 2 * 32
    assert option_b == option_a + 16 * 32 + 2 * 32


def test_a_positive_branch_blends_as_by_hand() -> None:
    block, x = scaling_block(2.0), torch.full((3, 1, 2, 2), 1.5)
    assert block.execute(x)[0, 0, 0, 0] == 4.5
    assert torch.equal(block.skip(x), x)
    assert block(x, gates(0.0, 0.25, 1.0))[:, 0, 0, 0].tolist() == [1.5, 0.75 * 1.5 + 0.25 * 4.5, 4.5]


def test_mixing_outputs_and_mixing_branches_differ_for_soft_weights_as_by_hand() -> None:
    block, x = scaling_block(-2.0), torch.ones(1, 1, 2, 2)
    assert block(x, gates(0.5))[0, 0, 0, 0] == 0.5
    block.mix = "branch"
    assert block(x, gates(0.5))[0, 0, 0, 0] == 0.0


@pytest.mark.parametrize(("stride", "option"), SHORTCUTS)
def test_both_mixes_agree_for_hard_weights_and_differ_for_soft(
    stride: int, option: Literal["A", "B"]
) -> None:
    block, x = lively_block(stride, option), 0.2 * torch.rand(4, 2, 6, 6)
    nn.init.constant_(block.bn2.bias, -0.5)
    hard, soft = gates(0.0, 1.0, 1.0, 0.0), gates(0.3, 0.6, 0.5, 0.9)
    by_output = block(x, hard), block(x, soft)
    block.mix = "branch"
    by_branch = block(x, hard), block(x, soft)
    torch.testing.assert_close(by_output[0], by_branch[0])
    assert not torch.allclose(by_output[1], by_branch[1], atol=1e-3)


@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize(("stride", "option"), SHORTCUTS)
def test_weight_one_executes_and_weight_zero_skips(
    stride: int, option: Literal["A", "B"], mix: Literal["output", "branch"]
) -> None:
    block, x = lively_block(stride, option), torch.rand(2, 2, 6, 6)
    block.mix = mix
    out = block(x, gates(1.0, 0.0))
    torch.testing.assert_close(out[0], block.execute(x)[0])
    torch.testing.assert_close(out[1], block.skip(x)[1])


@pytest.mark.parametrize(("stride", "option"), SHORTCUTS)
def test_execute_and_skip_are_the_relu_of_shortcut_and_branch(stride: int, option: Literal["A", "B"]) -> None:
    block, x = lively_block(stride, option), torch.rand(2, 2, 6, 6)
    torch.testing.assert_close(block.execute(x), torch.relu(block.shortcut(x) + block.branch(x)))
    torch.testing.assert_close(block.skip(x), torch.relu(block.shortcut(x)))


@pytest.mark.parametrize(("stride", "option"), SHORTCUTS)
@given(
    seed=strategies.seeds, execution=st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=2, max_size=2)
)
def test_soft_value_and_gradients_equal_the_literal_formula(
    stride: int, option: Literal["A", "B"], seed: int, execution: list[float]
) -> None:
    torch.manual_seed(seed)
    block = lively_block(stride, option).double()
    x = torch.rand(2, 2, 3, 4, dtype=torch.float64)
    results = []
    for literal in (False, True):
        images, v = (
            x.clone().requires_grad_(),
            torch.tensor(execution, dtype=torch.float64, requires_grad=True),
        )
        block.zero_grad()
        if literal:
            out = reference.unit(block.shortcut(images), block.branch(images), v)
        else:
            out = block(images, torch.stack([1 - v, v], dim=1))
        out.square().sum().backward()
        results.append([out, images.grad, v.grad, *[p.grad for p in block.parameters()]])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("stride", "option"), SHORTCUTS)
def test_execute_is_the_same_with_and_without_gradient(stride: int, option: Literal["A", "B"]) -> None:
    block, x = lively_block(stride, option), torch.rand(2, 2, 6, 6)
    with torch.no_grad():
        without = block.execute(x)
    assert torch.equal(block.execute(x).detach(), without)


def test_a_training_step_updates_the_batch_norm_of_a_projection_once() -> None:
    block = BasicBlock(2, 4, stride=2, stage=1, option="B").train()
    block(torch.rand(4, 2, 6, 6), gates(0.2, 0.4, 0.6, 0.8))
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1, 1]


def test_the_input_of_a_block_is_left_as_it_was() -> None:
    block, x = lively_block(1, "A"), torch.rand(2, 2, 4, 4)
    before = x.clone()
    block(x, gates(0.5, 1.0))
    block.execute(x)
    with torch.inference_mode():
        block(x, gates(0.5, 1.0))
        block.execute(x)
    assert torch.equal(x, before)
