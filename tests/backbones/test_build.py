from __future__ import annotations

import pytest

from sidestep.backbones.build import ModelConfig, build_backbone
from sidestep.backbones.cifar_resnet import CifarResNet
from sidestep.errors import RecipeError


def test_a_name_and_its_settings_become_a_backbone() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet14", shortcut="B", mix="branch"), num_classes=7)
    assert isinstance(backbone, CifarResNet)
    assert (backbone.config.depth, backbone.config.shortcut, backbone.config.mix) == (14, "B", "branch")
    assert backbone.fc.out_features == 7


@pytest.mark.parametrize("name", ["resnet32", "cifar_resnet", "cifar_resnet32x", "cifar_resnet-20"])
def test_an_unknown_name_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(RecipeError, match=f"got '{name}'; for example cifar_resnet32"):
        ModelConfig(name=name)


def test_a_name_with_an_impossible_depth_is_refused() -> None:
    with pytest.raises(RecipeError, match="depth must be 6n"):
        ModelConfig(name="cifar_resnet33")
