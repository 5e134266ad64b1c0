from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.layers.residual import Mix
from sidestep.layers.shortcut import Shortcut
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import branch_rows, lively_backbone, lively_network, shared_network
from tests.reference.macs import CountedMacs
from tests.reference.resnet import cifar_resnet

PARAMETERS = {
    20: (269_722, 272_474, 275_572),
    32: (464_154, 466_906, 470_004),
    38: (561_370, 564_122, 567_220),
    44: (658_586, 661_338, 664_436),
    56: (853_018, 855_770, 858_868),
    74: (1_144_666, 1_147_418, 1_150_516),
    110: (1_727_962, 1_730_714, 1_733_812),
    152: (2_408_474, 2_411_226, 2_414_324),
}


def num_parameters(depth: int, shortcut: Shortcut, num_classes: int) -> int:
    with torch.device("meta"):
        network = CifarResNet(CifarResNetConfig(depth=depth, shortcut=shortcut, num_classes=num_classes))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_are_those_of_the_specification_digit_for_digit(depth: int) -> None:
    option_a, option_b, hundred_classes = PARAMETERS[depth]
    assert num_parameters(depth, "A", 10) == option_a
    assert num_parameters(depth, "B", 10) == option_b
    assert num_parameters(depth, "A", 100) == hundred_classes
    assert num_parameters(depth, "B", 100) == option_b + 5_850
    assert num_parameters(depth, "pool_end", 10) == num_parameters(depth, "pool_both", 10) == option_a


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"), [(32, 468_109, 68_865_952), (110, 1_742_200, 252_899_776)]
)
def test_squeeze_and_excitation_adds_what_the_specification_says(
    depth: int, parameters: int, macs: int
) -> None:
    backbone = CifarResNet(CifarResNetConfig(depth=depth, se_ratio=16))
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert measure_cost(RoutedNetwork(backbone), (32, 32)).full == macs


def test_units_carry_the_widths_and_stages_that_routers_need() -> None:
    units = lively_backbone(14).units
    assert [unit.in_channels for unit in units] == [16, 16, 16, 32, 32, 64]
    assert [unit.stage for unit in units] == [0, 0, 1, 1, 2, 2]


def test_only_the_openers_of_later_stages_change_shape() -> None:
    backbone = lively_backbone(14, "B")
    assert [unit.projects for unit in backbone.units] == [False, False, True, False, True, False]
    x, shapes = backbone.stem(torch.rand(1, 3, 32, 32)), []
    for unit in backbone.units:
        x = unit.execute(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


def test_the_depth_counts_convolutions_of_blocks_stem_and_head() -> None:
    backbone = CifarResNet(CifarResNetConfig(depth=20))
    layers = [m for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20


def test_state_names_are_those_of_torchvision() -> None:
    names = set(lively_backbone(8, "B").state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn2.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight", "fc.weight", "fc.bias"} <= names
    assert not any(name.startswith("layer2.0.downsample") for name in lively_backbone(8, "A").state_dict())


@given(strategies.depths, strategies.shortcuts, strategies.batch_sizes, strategies.seeds)
def test_the_static_network_equals_the_literal_one(
    depth: int, shortcut: Shortcut, batch: int, seed: int
) -> None:
    backbone, images = shared_network(depth, shortcut).backbone, strategies.images(batch, seed)
    with torch.no_grad():
        expected = cifar_resnet(backbone.state_dict(), images, shortcut)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_static_network_with_squeeze_and_excitation_equals_the_literal_one(shortcut: Shortcut) -> None:
    backbone, images = lively_backbone(8, shortcut, se_ratio=8), strategies.images(2, 0)
    with torch.no_grad():
        expected = cifar_resnet(backbone.state_dict(), images, shortcut)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_squeeze_and_excitation_is_routed_gathered_prepared_and_priced(shortcut: Shortcut, mix: Mix) -> None:
    network, images = lively_network(14, shortcut, mix, se_ratio=4), strategies.images(16, 0)
    with torch.no_grad():
        masked = network(images)
        with branch_rows(network.backbone) as rows, CountedMacs() as counted:
            actual = network(images, execution=gathered)
        prepared = prepare(network, images)(images, execution=gathered)
    torch.testing.assert_close(actual.logits, masked.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prepared.logits, masked.logits, rtol=1e-5, atol=1e-5)
    assert len(masked.decisions.paths().unique(dim=0)) > 4
    assert rows == actual.decisions.execution().sum(dim=0).tolist()
    cost = measure_cost(network, (8, 8))
    assert sum(counted.macs) == cost.per_sample(actual.decisions).sum().item()


def test_convolutions_and_head_are_initialised_by_fan_in() -> None:
    backbone = CifarResNet(CifarResNetConfig(depth=8))
    for weight, fan_in in (
        (backbone.layer3[0].conv2.weight, 64 * 9),
        (backbone.layer2[0].conv1.weight, 16 * 9),
        (backbone.fc.weight, 64),
    ):
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_the_mix_reaches_every_unit() -> None:
    assert {unit.mix for unit in lively_backbone(14, mix="branch").units} == {"branch"}
    assert {unit.mix for unit in lively_backbone(14).units} == {"output"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shortcut": "C"}, "shortcut must be one of A, B, pool_end, pool_both, got 'C'; He et al. use A"),
        ({"se_ratio": 32}, "se_ratio must be from 1 to 16, .* got 32; the paper uses 16"),
        ({"se_ratio": 0}, "se_ratio must be from 1 to 16, .* got 0"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CifarResNetConfig(**settings)


@pytest.mark.parametrize("depth", [2, 7, 21, 51, 0, -4])
def test_a_depth_that_is_not_six_n_plus_two_is_refused(depth: int) -> None:
    with pytest.raises(RecipeError, match=f"depth must be 6n \\+ 2 with n >= 1, got {depth}"):
        CifarResNetConfig(depth=depth)
