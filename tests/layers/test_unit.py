"""Units with any number of options: values, prices, and gathered execution, all by the same code as two."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.backbones.cifar_resnet import CifarResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.gather import run_chosen
from sidestep.layers.shortcut import Shortcut
from sidestep.layers.unit import Unit
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import TableRouter, lively_backbone
from tests.reference.macs import CountedMacs


class Scales(Unit):
    """Multiplies by 0, 1, 10 or 100, whatever is chosen."""

    num_options = 4

    def __init__(self) -> None:
        super().__init__(in_channels=2, stage=0)
        self.rows: list[tuple[int, int]] = []

    def run(self, option: int, x: Tensor) -> Tensor:
        self.rows.append((option, x.shape[0]))
        return x * (0.0, 1.0, 10.0, 100.0)[option]


def test_weights_sum_the_outputs_of_all_options() -> None:
    x = torch.ones(2, 2, 1, 1)
    out = Scales()(x, torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([12.2, 100.0]))


def test_tokens_are_weighted_as_maps_are() -> None:
    out = Scales()(torch.ones(2, 3, 2), torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))
    assert out[:, 2, 1].tolist() == [1.0, 10.0]


def test_gathering_runs_every_option_for_its_images_and_no_others() -> None:
    unit, x = Scales().eval(), torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(5, 2, 1, 1)
    weights = F.one_hot(torch.tensor([3, 0, 3, 1, 3]), 4).float()
    out = run_chosen(unit, x, weights)
    assert out[:, 0, 0, 0].tolist() == [100.0, 0.0, 300.0, 4.0, 500.0]
    assert unit.rows == [(0, 1), (1, 1), (3, 3)]


def test_a_single_image_runs_its_option() -> None:
    unit = Scales().eval()
    assert run_chosen(unit, torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 0.0, 1.0, 0.0]]))[0, 0, 0, 0] == 10
    assert unit.rows == [(2, 1)]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_half_option_is_the_first_convolution_alone(shortcut: Shortcut) -> None:
    torch.manual_seed(0)
    for block in lively_backbone(8, shortcut, options=3).units:
        x = torch.rand(2, block.in_channels, 6, 6)
        first = torch.relu(block.bn1(block.conv1(x)))
        torch.testing.assert_close(block.run(1, x), torch.relu(block.shortcut(x) + first))
        assert torch.equal(block.run(0, x), block.skip(x))
        assert torch.equal(block.run(2, x), block.execute(x))


@given(st.integers(1, 5), strategies.shortcuts, strategies.seeds)
def test_three_options_are_gathered_and_priced_like_two(batch: int, shortcut: Shortcut, seed: int) -> None:
    torch.manual_seed(0)
    network = RoutedNetwork(lively_backbone(8, shortcut, options=3))
    cost = measure_cost(network, (8, 8))
    images = strategies.images(batch, seed)
    router = TableRouter(torch.randint(0, 3, (batch, 3), generator=strategies.generator(seed)), 3)
    with torch.no_grad():
        expected = network(images, router=router)
        with CountedMacs() as counted:
            actual = network(images, router=router, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert sum(counted.macs) == cost.per_sample(actual.decisions, routers=False).sum().item()


def test_the_options_of_a_block_rise_in_price() -> None:
    cost = measure_cost(RoutedNetwork(lively_backbone(8, options=3)), (32, 32))
    first = cost.options[0].tolist()
    assert first == [0, 4_718_592 / 2, 4_718_592]


def test_three_options_need_the_blend_of_outputs() -> None:
    with pytest.raises(RecipeError, match="options 3 blends outputs, got mix 'branch'; set mix to output"):
        CifarResNetConfig(depth=8, options=3, mix="branch")


def test_a_static_network_takes_the_dearest_option() -> None:
    network = RoutedNetwork(lively_backbone(8, options=3))
    weights = network(strategies.images(2, 0)).decisions.weights
    assert weights.tolist() == [[[0.0, 0.0, 1.0]] * 3] * 2


def test_a_unit_has_to_say_how_it_runs() -> None:
    with pytest.raises(NotImplementedError):
        Unit(in_channels=1, stage=0).execute(torch.zeros(1, 1, 1, 1))
    assert isinstance(Unit(in_channels=1, stage=0), nn.Module)
