from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sidestep.layers.preact import PreactBlock
from tests.doubles import enliven


def block(*, opens: bool = False, first: bool = False) -> PreactBlock:
    unit = PreactBlock(4, 8 if opens else 4, stride=2 if opens else 1, stage=0, first=first)
    enliven(unit)
    return unit.eval()


KINDS = pytest.mark.parametrize(
    "kind", [{}, {"opens": True}, {"first": True}], ids=["plain", "opens", "first"]
)


@pytest.mark.parametrize("size", [(9, 7), (8, 5)])
def test_the_shortcut_of_an_opener_fits_its_branch_at_odd_sizes(size: tuple[int, int]) -> None:
    out = block(opens=True).execute(torch.randn(2, 4, *size))
    assert out.shape == (2, 8, (size[0] + 1) // 2, (size[1] + 1) // 2)


@KINDS
def test_executing_adds_the_branch_to_the_skipped_output_and_nothing_follows(kind: dict[str, bool]) -> None:
    unit, x = block(**kind), torch.randn(2, 4, 6, 6)
    before = functional.leaky_relu(unit.bn1(x), 0.1)
    branch = unit.conv2(functional.leaky_relu(unit.bn2(unit.conv1(before)), 0.1))
    source = before if unit.first else x
    skipped = source if unit.downsample is None else unit.downsample(source)
    torch.testing.assert_close(unit.skip(x), skipped)
    torch.testing.assert_close(unit.execute(x), skipped + branch)
    assert bool((unit.execute(x) < 0).any())


@KINDS
def test_soft_weights_scale_the_branch_and_hard_ones_choose(kind: dict[str, bool]) -> None:
    unit, x = block(**kind), torch.randn(3, 4, 6, 6)
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]])
    out, skipped, executed = unit(x, weights), unit.skip(x), unit.execute(x)
    torch.testing.assert_close(out[0], skipped[0])
    torch.testing.assert_close(out[1], executed[1])
    torch.testing.assert_close(out[2], 0.75 * skipped[2] + 0.25 * executed[2])


@KINDS
def test_the_input_is_left_as_it_was_with_and_without_gradient(kind: dict[str, bool]) -> None:
    unit, x = block(**kind), torch.randn(2, 4, 6, 6)
    before = x.clone()
    with_gradient = unit.execute(x)
    with torch.inference_mode():
        assert torch.equal(unit.execute(x), with_gradient)
    assert torch.equal(x, before)


def test_only_blocks_that_hand_their_input_on_say_so() -> None:
    assert block().keeps_input
    assert not block(first=True).keeps_input
    assert not block(opens=True).keeps_input
    x = torch.randn(1, 4, 4, 4)
    assert block().skip(x) is x


def test_channels_last_is_kept() -> None:
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    for kind in ({}, {"opens": True}, {"first": True}):
        unit = block(**kind).to(memory_format=torch.channels_last)
        assert unit.execute(x).is_contiguous(memory_format=torch.channels_last)
