from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from sidestep.layers.positions import share_of_macs
from sidestep.layers.unit import Unit
from tests import strategies

BASIC = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
BOTTLENECK = [nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 8, 1)]


def marked(*places: tuple[int, int], size: int = 5) -> Tensor:
    positions = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for row, column in places:
        positions[0, 0, row, column] = True
    return positions


def test_two_convolutions_are_counted_at_the_positions_and_one_around_them() -> None:
    assert share_of_macs(BASIC, marked((2, 2))).item() == pytest.approx((1 + 9) / 50)
    assert share_of_macs(BASIC, marked((0, 0))).item() == pytest.approx((1 + 4) / 50)
    assert share_of_macs(BASIC, marked((2, 2), (2, 3))).item() == pytest.approx((2 + 12) / 50)


def test_a_bottleneck_looks_around_once_and_its_convolutions_weigh_what_they_cost() -> None:
    expected = (16 * 9 + 36 * 1 + 16 * 1) / (68 * 25)
    assert share_of_macs(BOTTLENECK, marked((2, 2))).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("chain", [BASIC, BOTTLENECK])
def test_everything_and_nothing_cost_all_and_nothing(chain: list[nn.Conv2d], size: int) -> None:
    everything = torch.ones(3, 1, size, size, dtype=torch.bool)
    assert share_of_macs(chain, everything).tolist() == [1.0] * 3
    assert share_of_macs(chain, ~everything).tolist() == [0.0] * 3


@given(strategies.seeds)
def test_a_share_lies_between_that_of_the_positions_and_one_and_rises_with_them(seed: int) -> None:
    draws = torch.rand(4, 1, 6, 6, generator=strategies.generator(seed))
    few, many = draws < 0.2, draws < 0.6
    share = share_of_macs(BASIC, few)
    assert bool((share >= few.float().mean(dim=(1, 2, 3)) - 1e-6).all())
    assert bool((share <= share_of_macs(BASIC, many)).all())
    assert bool((share_of_macs(BASIC, many) <= 1 + 1e-6).all())


def test_a_unit_that_says_nothing_counts_its_positions() -> None:
    assert Unit(in_channels=4, stage=0).share_of_macs(marked((0, 0), (1, 1))).item() == pytest.approx(2 / 25)
