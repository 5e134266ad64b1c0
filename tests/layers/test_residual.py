from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.layers.residual import BasicBlock, Bottleneck, Mix, residual_stage
from tests import strategies
from tests.doubles import enliven
from tests.reference import blend as reference
from tests.reference.squeeze_excite import squeeze_excite

BLOCKS: dict[str, Callable[[], BasicBlock | Bottleneck]] = {
    "plain": partial(BasicBlock, 2, 2, stride=1, stage=0),
    "A": partial(BasicBlock, 2, 4, stride=2, stage=0, option="A"),
    "B": partial(BasicBlock, 2, 4, stride=2, stage=0, option="B"),
    "pool_end": partial(BasicBlock, 2, 4, stride=2, stage=0, option="pool_end"),
    "pool_both": partial(BasicBlock, 2, 4, stride=2, stage=0, option="pool_both"),
    "se": partial(BasicBlock, 2, 2, stride=1, stage=0, se_ratio=2),
    "bottleneck": partial(Bottleneck, 8, 8, stride=1, stage=0),
    "bottleneck that widens": partial(Bottleneck, 2, 8, stride=1, stage=0),
    "bottleneck that halves": partial(Bottleneck, 2, 8, stride=2, stage=0),
    "bottleneck with se": partial(Bottleneck, 2, 8, stride=2, stage=0, se_ratio=4),
}
EVERY_BLOCK = pytest.mark.parametrize("kind", BLOCKS)


def scaling_block(factor: float) -> BasicBlock:
    """Return a block of one channel whose branch is `factor` times its non-negative input."""
    block = BasicBlock(1, 1, stride=1, stage=0).eval()
    for conv, centre in ((block.conv1, 1.0), (block.conv2, factor)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = centre
    block.bn1.eps = block.bn2.eps = 0.0
    return block


def lively_block(kind: str) -> BasicBlock | Bottleneck:
    block = BLOCKS[kind]()
    enliven(block)
    return block.eval()


def features(block: BasicBlock | Bottleneck, batch: int = 2) -> Tensor:
    return torch.rand(batch, block.in_channels, 6, 6)


def gates(*execution: float) -> Tensor:
    weight = torch.tensor(execution)
    return torch.stack([1 - weight, weight], dim=1)


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


@EVERY_BLOCK
def test_both_mixes_agree_for_hard_weights_and_differ_for_soft(kind: str) -> None:
    block = lively_block(kind)
    x = 0.2 * features(block, batch=4)
    nn.init.constant_(getattr(block, "bn3", block.bn2).bias, -0.5)
    hard, soft = gates(0.0, 1.0, 1.0, 0.0), gates(0.3, 0.6, 0.5, 0.9)
    by_output = block(x, hard), block(x, soft)
    block.mix = "branch"
    by_branch = block(x, hard), block(x, soft)
    torch.testing.assert_close(by_output[0], by_branch[0])
    assert not torch.allclose(by_output[1], by_branch[1], atol=1e-3)


@pytest.mark.parametrize("mix", ["output", "branch"])
@EVERY_BLOCK
def test_weight_one_executes_and_weight_zero_skips(kind: str, mix: Mix) -> None:
    block = lively_block(kind)
    x = features(block)
    block.mix = mix
    out = block(x, gates(1.0, 0.0))
    torch.testing.assert_close(out[0], block.execute(x)[0])
    torch.testing.assert_close(out[1], block.skip(x)[1])


@EVERY_BLOCK
def test_execute_and_skip_are_the_relu_of_shortcut_and_branch(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    torch.testing.assert_close(block.execute(x), torch.relu(block.shortcut(x) + block.branch(x)))
    torch.testing.assert_close(block.skip(x), torch.relu(block.shortcut(x)))


@EVERY_BLOCK
@given(
    seed=strategies.seeds, execution=st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=2, max_size=2)
)
def test_soft_value_and_gradients_equal_the_literal_formula(
    kind: str, seed: int, execution: list[float]
) -> None:
    torch.manual_seed(seed)
    block = lively_block(kind).double()
    x = torch.rand(2, block.in_channels, 3, 4, dtype=torch.float64)
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


@EVERY_BLOCK
def test_execute_is_the_same_with_and_without_gradient(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    with torch.no_grad():
        without = block.execute(x)
    assert torch.equal(block.execute(x).detach(), without)


def test_a_training_step_updates_the_batch_norm_of_a_projection_once() -> None:
    block = BasicBlock(2, 4, stride=2, stage=1, option="B").train()
    block(torch.rand(4, 2, 6, 6), gates(0.2, 0.4, 0.6, 0.8))
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1, 1]


@EVERY_BLOCK
@pytest.mark.parametrize("mix", ["output", "branch"])
def test_channels_last_is_kept_forward_and_backward(kind: str, mix: Mix) -> None:
    block = lively_block(kind).to(memory_format=torch.channels_last)
    block.mix = mix
    x = features(block).to(memory_format=torch.channels_last).requires_grad_()
    out = block(x, gates(0.3, 0.6))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@EVERY_BLOCK
def test_the_input_of_a_block_is_left_as_it_was(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    before = x.clone()
    block(x, gates(0.5, 1.0))
    block.execute(x)
    with torch.inference_mode():
        block(x, gates(0.5, 1.0))
        block.execute(x)
        block.skip(x)
    assert torch.equal(x, before)


@EVERY_BLOCK
def test_a_block_knows_whether_skipping_it_keeps_its_input_and_whether_it_projects(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    assert block.keeps_input == (block.skip(x) is x)
    assert block.projects == any("downsample" in name for name, _ in block.named_parameters())


def test_a_bottleneck_squeezes_to_a_quarter_and_has_its_stride_in_the_middle() -> None:
    block = Bottleneck(64, 256, stride=2, stage=1)
    kernels = [
        (c.in_channels, c.out_channels, c.kernel_size, c.stride)
        for c in block.children()
        if hasattr(c, "stride")
    ]
    assert kernels == [
        (64, 64, (1, 1), (1, 1)),
        (64, 64, (3, 3), (2, 2)),
        (64, 256, (1, 1), (1, 1)),
    ]
    assert block.branch(torch.rand(2, 64, 5, 7)).shape == (2, 256, 3, 4)
    parameters = 64 * 64 + 64 * 64 * 9 + 64 * 256 + 2 * (64 + 64 + 256) + 64 * 256 + 2 * 256
    assert sum(p.numel() for p in block.parameters()) == parameters


def test_a_bottleneck_agrees_with_hand_arithmetic() -> None:
    block = Bottleneck(4, 4, stride=1, stage=0).eval()
    for norm in (block.bn1, block.bn2, block.bn3):
        norm.eps = 0.0
    for conv, factor in ((block.conv1, 0.25), (block.conv2, 2.0), (block.conv3, 3.0)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[:, :, conv.kernel_size[0] // 2, conv.kernel_size[0] // 2] = factor
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 4, 1, 1)
    # The mean of the channels, 3, times 2, times 3.
    assert block.branch(x)[0, :, 0, 0].tolist() == [18.0] * 4
    assert block.execute(x)[0, :, 0, 0].tolist() == [19.0, 20.0, 21.0, 24.0]
    assert block(x, gates(0.5))[0, :, 0, 0].tolist() == [10.0, 11.0, 12.0, 15.0]


@pytest.mark.parametrize("kind", ["se", "bottleneck with se"])
def test_squeeze_and_excitation_scales_the_branch_behind_its_last_norm(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    out = block.convolutions(x).detach()
    expected = squeeze_excite(out, block.se.state_dict())
    torch.testing.assert_close(block.branch(x), expected)
    torch.testing.assert_close(block.execute(x), torch.relu(block.shortcut(x) + expected))


def test_the_first_block_of_a_stage_changes_the_shape_and_the_others_keep_it() -> None:
    stage = residual_stage(partial(BasicBlock, mix="branch"), 2, 4, num_blocks=3, stride=2, stage=1)
    assert [(block.in_channels, block.stage, block.keeps_input, block.mix) for block in stage] == [
        (2, 1, False, "branch"),
        (4, 1, True, "branch"),
        (4, 1, True, "branch"),
    ]
    x = torch.rand(1, 2, 6, 6)
    for block in stage:
        x = block.execute(x)
    assert x.shape == (1, 4, 3, 3)
