from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidestep.layers.norm import NormStyle
from sidestep.layers.preact import PreactBlock, PreactBottleneck, PreactUnit
from tests.doubles import enliven

BLOCKS: dict[str, Callable[[], PreactUnit]] = {
    "plain": partial(PreactBlock, 4, 4, stride=1, stage=0),
    "opens": partial(PreactBlock, 4, 8, stride=2, stage=0),
    "first": partial(PreactBlock, 4, 4, stride=1, stage=0, first=True),
    "bottleneck": partial(PreactBottleneck, 8, 8, stride=1, stage=0),
    "bottleneck that widens": partial(PreactBottleneck, 4, 8, stride=1, stage=0),
    "bottleneck that halves": partial(PreactBottleneck, 4, 8, stride=2, stage=0),
}
KINDS = pytest.mark.parametrize("kind", BLOCKS)
OPENERS = pytest.mark.parametrize("kind", ["opens", "bottleneck that halves"])


def block(kind: str = "plain") -> PreactUnit:
    unit = BLOCKS[kind]()
    enliven(unit)
    return unit.eval()


def features(unit: PreactUnit, batch: int = 2) -> Tensor:
    return torch.randn(batch, unit.in_channels, 6, 6)


def literal(unit: PreactUnit, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return branch and shortcut from the state dict, the shortcut by the rule of each family."""
    state = unit.state_dict(keep_vars=True)
    leak, eps = (0.1, 1e-3) if isinstance(unit, PreactBlock) else (0.0, 1e-5)
    before = activated(state, "bn1", x, leak, eps)
    branch = before
    for number in range(1, 4 if isinstance(unit, PreactBottleneck) else 3):
        # On CIFAR the leaky ReLU of 0.1 is applied twice between the convolutions.
        inner = before if number == 1 else activated(state, f"bn{number}", branch, leak * leak, eps)
        convolution = getattr(unit, f"conv{number}")
        weight, stride = state[f"conv{number}.weight"], convolution.stride
        branch = functional.conv2d(inner, weight, stride=stride, padding=weight.shape[2] // 2)
    if "downsample.weight" in state:
        stride = 2 if branch.shape[2] < x.shape[2] else 1
        return branch, functional.conv2d(before, state["downsample.weight"], stride=stride)
    source = before if unit.activates_shortcut else x
    if branch.shape == x.shape:
        return branch, source
    pooled = sum(source[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    zeros = torch.zeros_like(pooled[:, : x.shape[1] // 2])
    return branch, torch.cat([zeros, pooled, zeros], dim=1)


def activated(state: dict[str, Any], name: str, x: Tensor, leak: float, eps: float) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    normed = (x - mean) / torch.sqrt(var + eps) * weight + bias
    return torch.where(normed > 0, normed, leak * normed)


@OPENERS
@pytest.mark.parametrize("size", [(9, 7), (8, 5)])
def test_the_shortcut_of_an_opener_fits_its_branch_at_odd_sizes(kind: str, size: tuple[int, int]) -> None:
    out = block(kind).execute(torch.randn(2, 4, *size))
    assert out.shape == (2, 8, (size[0] + 1) // 2, (size[1] + 1) // 2)


@KINDS
def test_value_and_gradient_equal_the_literal_formula_and_nothing_follows_the_sum(kind: str) -> None:
    unit = block(kind).double()
    x = features(unit).double().requires_grad_()
    branch, skipped = literal(unit, x)
    torch.testing.assert_close(unit.skip(x), skipped)
    torch.testing.assert_close(unit.execute(x), skipped + branch)
    assert bool((unit.execute(x) < 0).any())
    parameters = [x, *unit.parameters()]
    expected = torch.autograd.grad((skipped + branch).square().sum(), parameters)
    actual = torch.autograd.grad(unit.execute(x).square().sum(), parameters)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("kind", "activates"), list(zip(BLOCKS, [False, False, True, False, True, True], strict=True))
)
def test_the_shortcut_is_taken_of_the_activated_input_in_the_first_block_and_by_projections(
    kind: str, activates: bool
) -> None:
    assert BLOCKS[kind]().activates_shortcut == activates


def test_a_leak_of_zero_is_relu_and_of_one_is_nothing() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    outs = [NormStyle(leak=leak, eps=1e-5).activate(x).tolist() for leak in (0.0, 0.5, 1.0)]
    assert outs == [[0.0, 0.0, 3.0], [-1.0, 0.0, 3.0], [-2.0, 0.0, 3.0]]
    NormStyle(leak=0.5, eps=1e-5).activate(x)
    assert x.tolist() == [-2.0, 0.0, 3.0]
    NormStyle(leak=0.5, eps=1e-5).activate(x, inplace=True)
    assert x.tolist() == [-1.0, 0.0, 3.0]


def test_a_bottleneck_has_its_stride_in_the_middle_and_no_norm_behind_its_projection() -> None:
    kernels = [
        (c.in_channels, c.out_channels, c.kernel_size, c.stride)
        for c in block("bottleneck that halves").children()
        if isinstance(c, nn.Conv2d)
    ]
    assert kernels == [
        (4, 2, (1, 1), (1, 1)),
        (2, 2, (3, 3), (2, 2)),
        (2, 8, (1, 1), (1, 1)),
        (4, 8, (1, 1), (2, 2)),
    ]


def test_a_bottleneck_needs_its_first_convolution_around_the_positions_of_the_others() -> None:
    positions = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    positions[0, 0, 2, 2] = True
    share = block("bottleneck").share_of_macs(positions).item()
    macs = [8 * 2, 2 * 2 * 9, 2 * 8]
    assert share == pytest.approx((macs[0] * 9 + macs[1] + macs[2]) / (sum(macs) * 25))


@KINDS
def test_soft_weights_scale_the_branch_and_hard_ones_choose(kind: str) -> None:
    unit = block(kind)
    x = features(unit, 3)
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]])
    out, skipped, executed = unit(x, weights), unit.skip(x), unit.execute(x)
    torch.testing.assert_close(out[0], skipped[0])
    torch.testing.assert_close(out[1], executed[1])
    torch.testing.assert_close(out[2], 0.75 * skipped[2] + 0.25 * executed[2])


@KINDS
def test_the_input_is_left_as_it_was_with_and_without_gradient(kind: str) -> None:
    unit = block(kind)
    x = features(unit)
    before = x.clone()
    with_gradient = unit.execute(x)
    with torch.inference_mode():
        assert torch.equal(unit.execute(x), with_gradient)
    assert torch.equal(x, before)


def test_only_blocks_that_hand_their_input_on_say_so() -> None:
    assert [kind for kind in BLOCKS if block(kind).keeps_input] == ["plain", "bottleneck"]
    for kind in ("plain", "bottleneck"):
        unit = block(kind)
        x = features(unit)
        assert unit.skip(x) is x


@KINDS
def test_channels_last_is_kept(kind: str) -> None:
    unit = block(kind).to(memory_format=torch.channels_last)
    x = features(unit).to(memory_format=torch.channels_last)
    assert unit.execute(x).is_contiguous(memory_format=torch.channels_last)
    assert unit.skip(x).is_contiguous(memory_format=torch.channels_last)
