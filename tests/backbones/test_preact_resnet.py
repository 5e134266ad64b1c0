from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given

from sidestep.backbones.preact_resnet import PreactResNet, PreactResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import enliven
from tests.reference.preact import preact_resnet


@cache
def lively_backbone() -> PreactResNet:
    """Return a network in evaluation mode that no test may change."""
    backbone = PreactResNet(PreactResNetConfig(depth=14))
    enliven(backbone)
    return backbone.eval()


@given(strategies.batch_sizes, strategies.seeds)
def test_the_static_network_equals_the_literal_one(batch: int, seed: int) -> None:
    backbone, images = lively_backbone(), strategies.images(batch, seed)
    with torch.no_grad():
        expected = preact_resnet(backbone.state_dict(), images)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "macs"), [(32, 68_862_592), (110, 252_887_680)])
def test_macs_are_those_of_the_released_code_digit_for_digit(depth: int, macs: int) -> None:
    """Its own test counts 505,775,360 operations in ResNet-110, two for every multiply-add."""
    with torch.device("meta"):
        backbone = PreactResNet(PreactResNetConfig(depth=depth))
    cost = measure_cost(RoutedNetwork(backbone), (32, 32))
    assert cost.full == macs
    assert not cost.options[:, 0].any()


def test_a_name_becomes_this_network() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_preact_resnet14"), num_classes=7)
    assert isinstance(backbone, PreactResNet)
    assert (backbone.config.depth, backbone.fc.out_features) == (14, 7)
    assert [unit.stage for unit in backbone.units] == [0, 0, 1, 1, 2, 2]
    assert [unit.keeps_input for unit in backbone.units] == [False, True] * 3


def test_an_impossible_depth_is_refused() -> None:
    with pytest.raises(RecipeError, match="depth must be 6n"):
        PreactResNetConfig(depth=9)
