from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sidestep.errors import RecipeError
from sidestep.layers.residual import (
    BasicBlock,
    BlockConfig,
    Bottleneck,
    HalfBlock,
    Mix,
    Skip,
    residual_stages,
)
from tests import strategies
from tests.doubles import enliven
from tests.reference import blend as reference
from tests.reference.squeeze_excite import squeeze_excite

Block = BasicBlock | Bottleneck
PROJECTS = BlockConfig(shortcut="B")

BLOCKS: dict[str, Callable[[], Block]] = {
    "plain": partial(BasicBlock, 2, 2, stride=1, stage=0),
    "A": partial(BasicBlock, 2, 4, stride=2, stage=0),
    "B": partial(BasicBlock, 2, 4, stride=2, stage=0, config=PROJECTS),
    "pool_end": partial(BasicBlock, 2, 4, stride=2, stage=0, config=BlockConfig(shortcut="pool_end")),
    "pool_both": partial(BasicBlock, 2, 4, stride=2, stage=0, config=BlockConfig(shortcut="pool_both")),
    "se": partial(BasicBlock, 2, 2, stride=1, stage=0, config=BlockConfig(se_ratio=2)),
    "bottleneck": partial(Bottleneck, 8, 8, stride=1, stage=0),
    "bottleneck that widens": partial(Bottleneck, 2, 8, stride=1, stage=0),
    "bottleneck that halves": partial(Bottleneck, 2, 8, stride=2, stage=0),
    "bottleneck with se": partial(
        Bottleneck, 2, 8, stride=2, stage=0, config=BlockConfig(shortcut="B", se_ratio=4)
    ),
}
LINEAR = BlockConfig(shortcut="B", skip="linear")
SKIPS: dict[str, Callable[[], Block]] = {
    "linear": partial(BasicBlock, 2, 4, stride=2, stage=0, config=LINEAR),
    "linear bottleneck": partial(Bottleneck, 2, 8, stride=1, stage=0, config=LINEAR),
    "own beside A": partial(BasicBlock, 2, 4, stride=2, stage=0, config=BlockConfig(skip="own")),
    "own beside B": partial(
        BasicBlock, 2, 4, stride=2, stage=0, config=BlockConfig(shortcut="B", skip="own")
    ),
    "own beside pool_end": partial(
        BasicBlock, 2, 4, stride=2, stage=0, config=BlockConfig(shortcut="pool_end", skip="own")
    ),
    "own bottleneck": partial(
        Bottleneck, 2, 8, stride=2, stage=0, config=BlockConfig(shortcut="B", skip="own")
    ),
}
# With the skip that most papers have, and with both others.
EVERY_BLOCK = pytest.mark.parametrize("kind", BLOCKS)
OTHER_SKIP = pytest.mark.parametrize("kind", SKIPS)
EVERY_SKIP = pytest.mark.parametrize("kind", [*BLOCKS, *SKIPS])


def scaling_block(factor: float) -> BasicBlock:
    """Return a block of one channel whose branch is `factor` times its non-negative input."""
    block = BasicBlock(1, 1, stride=1, stage=0).eval()
    for conv, centre in ((block.conv1, 1.0), (block.conv2, factor)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = centre
    block.bn1.eps = block.bn2.eps = 1e-12
    return block


def lively_block(kind: str) -> Block:
    block = (BLOCKS | SKIPS)[kind]()
    enliven(block)
    return block.eval()


def features(block: Block, batch: int = 2) -> Tensor:
    return torch.rand(batch, block.in_channels, 6, 6)


def gates(*execution: float) -> Tensor:
    weight = torch.tensor(execution)
    return torch.stack([1 - weight, weight], dim=1)


def test_option_a_has_no_parameters_and_option_b_a_convolution_with_batch_norm() -> None:
    plain, option_a, option_b = (
        sum(
            p.numel()
            for p in BasicBlock(
                16, 16 * stride, stride=stride, stage=1, config=BlockConfig(shortcut=shortcut)
            ).parameters()
        )
        for stride, shortcut in ((1, "B"), (2, "A"), (2, "B"))
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


@OTHER_SKIP
def test_with_another_skip_too_weight_one_executes_and_weight_zero_skips(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    out = block(x, gates(1.0, 0.0))
    torch.testing.assert_close(out[0], block.execute(x)[0])
    torch.testing.assert_close(out[1], block.skip(x)[1])


@OTHER_SKIP
def test_what_skipping_returns_does_not_change_what_executing_returns(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    torch.testing.assert_close(block.execute(x), torch.relu(block.shortcut(x) + block.branch(x)))


@pytest.mark.parametrize("kind", ["linear", "linear bottleneck"])
def test_a_linear_skip_is_the_shortcut_without_relu(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    assert torch.equal(block.skip(x), block.shortcut(x))
    assert bool((block.skip(x) < 0).any())


@pytest.mark.parametrize("kind", ["own beside A", "own beside B", "own bottleneck"])
def test_a_skip_of_its_own_is_a_convolution_with_norm_and_relu_beside_the_shortcut(kind: str) -> None:
    block = lively_block(kind)
    x, state = features(block), block.bypass.state_dict()
    projected = functional.conv2d(x, state["0.weight"], stride=2)
    shape = (1, -1, 1, 1)
    expected = projected - state["1.running_mean"].view(shape)
    expected = expected / torch.sqrt(state["1.running_var"].view(shape) + 1e-5)
    expected = torch.relu(expected * state["1.weight"].view(shape) + state["1.bias"].view(shape))
    torch.testing.assert_close(block.skip(x), expected)
    assert not torch.allclose(block.skip(x), torch.relu(block.shortcut(x)), atol=1e-2)


@EVERY_BLOCK
def test_execute_and_skip_are_the_relu_of_shortcut_and_branch(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    torch.testing.assert_close(block.execute(x), torch.relu(block.shortcut(x) + block.branch(x)))
    torch.testing.assert_close(block.skip(x), torch.relu(block.shortcut(x)))


@EVERY_SKIP
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
            shortcut, skipped = block.shortcut(images), None
            if kind in SKIPS:
                skipped = shortcut if block.bypass is None else block.bypass(images)
            out = reference.unit(shortcut, block.branch(images), v, skipped)
        else:
            out = block(images, torch.stack([1 - v, v], dim=1))
        out.square().sum().backward()
        results.append([out, images.grad, v.grad, *[p.grad for p in block.parameters()]])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@EVERY_SKIP
def test_execute_is_the_same_with_and_without_gradient(kind: str) -> None:
    block = lively_block(kind)
    x = features(block)
    with torch.no_grad():
        without = block.execute(x)
    assert torch.equal(block.execute(x).detach(), without)


@pytest.mark.parametrize(("skip", "norms"), [("relu", 3), ("linear", 3), ("own", 4)])
def test_a_training_step_updates_the_batch_norm_of_every_projection_once(skip: Skip, norms: int) -> None:
    block = BasicBlock(2, 4, stride=2, stage=1, config=BlockConfig(shortcut="B", skip=skip)).train()
    block(torch.rand(4, 2, 6, 6), gates(0.2, 0.4, 0.6, 0.8))
    counts = [int(m.num_batches_tracked) for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [1] * norms


def test_a_block_that_keeps_its_shape_has_nothing_of_its_own_to_skip_with() -> None:
    block = BasicBlock(2, 2, stride=1, stage=0, config=BlockConfig(skip="own"))
    assert block.bypass is None
    assert block.keeps_input


@pytest.mark.parametrize("config", [LINEAR, BlockConfig(skip="own"), BlockConfig(shortcut="B", skip="own")])
def test_a_block_with_a_half_option_skips_as_the_whole_one_and_halves_as_ever(config: BlockConfig) -> None:
    block = HalfBlock(2, 4, stride=2, stage=0, config=config)
    enliven(block)
    x, weights = torch.rand(3, 2, 6, 6), torch.tensor([[0.2, 0.5, 0.3]]).expand(3, -1)
    block.eval()
    skipped = block.shortcut(x) if block.bypass is None else block.bypass(x)
    half = torch.relu(block.shortcut(x) + torch.relu(block.bn1(block.conv1(x))))
    torch.testing.assert_close(block.run(0, x), skipped)
    torch.testing.assert_close(block.run(1, x), half)
    expected = 0.2 * skipped + 0.5 * half + 0.3 * torch.relu(block.shortcut(x) + block.branch(x))
    torch.testing.assert_close(block(x, weights), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": "none"}, "skip must be one of relu, linear, own, got 'none'; most papers use relu"),
        ({"skip": "linear"}, "skip 'linear' has no effect on shortcut 'A', .*; drop it, or set shortcut: B"),
        ({"skip": "linear", "shortcut": "pool_end"}, "skip 'linear' has no effect on shortcut 'pool_end'"),
        ({"skip": "own", "mix": "branch"}, "skip must be relu with mix 'branch', .* got 'own'; drop it, or"),
        (
            {"skip": "linear", "shortcut": "B", "mix": "branch"},
            "skip must be relu with mix 'branch', .* got 'linear'",
        ),
    ],
)
def test_a_skip_without_effect_or_against_the_mix_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        BlockConfig(**settings)


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        *((kind, mix) for kind in BLOCKS for mix in ("output", "branch")),
        *((kind, "output") for kind in SKIPS),
    ],
)
def test_channels_last_is_kept_forward_and_backward(kind: str, mix: Mix) -> None:
    block = lively_block(kind).to(memory_format=torch.channels_last)
    block.mix = mix
    x = features(block).to(memory_format=torch.channels_last).requires_grad_()
    out = block(x, gates(0.3, 0.6))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@EVERY_SKIP
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


@EVERY_SKIP
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
        norm.eps = 1e-12
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
    block = partial(BasicBlock, config=BlockConfig(mix="branch"))
    first, second = residual_stages(block, stem=2, widths=[2, 4], nums_blocks=[1, 3])
    blocks = [*first, *second]
    assert [(block.in_channels, block.stage, block.keeps_input, block.mix) for block in blocks] == [
        (2, 0, True, "branch"),
        (2, 1, False, "branch"),
        (4, 1, True, "branch"),
        (4, 1, True, "branch"),
    ]
    x = torch.rand(1, 2, 6, 6)
    for block in blocks:
        x = block.execute(x)
    assert x.shape == (1, 4, 3, 3)


def test_the_first_block_of_a_network_may_be_another_one() -> None:
    stages = residual_stages(
        BasicBlock, stem=2, widths=[8, 16], nums_blocks=[2, 1], first=partial(BasicBlock, config=PROJECTS)
    )
    assert [block.projects for stage in stages for block in stage] == [True, False, False]
