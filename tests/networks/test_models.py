from __future__ import annotations

from typing import Any

import pytest
import torch

from sidestep.backbones.cifar_resnet import CifarResNet
from sidestep.backbones.imagenet_resnet import ImageNetResNet
from sidestep.errors import RecipeError
from sidestep.layers.shortcut import PadShortcut, PoolShortcut, Shortcut
from sidestep.networks.models import ModelConfig, build_backbone


def test_a_name_and_its_settings_become_a_backbone() -> None:
    config = ModelConfig(name="cifar_resnet14", shortcut="B", mix="branch", se_ratio=8)
    backbone = build_backbone(config, num_classes=7)
    assert isinstance(backbone, CifarResNet)
    settings = backbone.config
    assert (settings.depth, settings.shortcut, settings.mix, settings.se_ratio) == (14, "B", "branch", 8)
    assert backbone.fc.out_features == 7


@pytest.mark.parametrize("depth", [20, 32, 38, 44, 56, 74, 110, 152])
def test_every_depth_of_the_papers_is_known_on_cifar(depth: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(ModelConfig(name=f"cifar_resnet{depth}"), 10)
    assert isinstance(backbone, CifarResNet)
    assert (backbone.config.depth, backbone.config.shortcut) == (depth, "A")


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_of_the_papers_is_known_on_imagenet(depth: int) -> None:
    config = ModelConfig(name=f"resnet{depth}", mix="branch", se_ratio=16)
    with torch.device("meta"):
        backbone = build_backbone(config, 7)
    assert isinstance(backbone, ImageNetResNet)
    settings = backbone.config
    assert (settings.depth, settings.mix, settings.se_ratio, settings.num_classes) == (depth, "branch", 16, 7)
    assert {unit.mix for unit in backbone.units} == {"branch"}


@pytest.mark.parametrize(
    ("shortcut", "kind"), [("A", PadShortcut), ("pool_end", PoolShortcut), ("pool_both", PoolShortcut)]
)
def test_the_shortcut_reaches_every_stage_that_changes_the_shape(shortcut: Shortcut, kind: type) -> None:
    units = build_backbone(ModelConfig(name="cifar_resnet14", shortcut=shortcut), 10).units
    changed = [unit.downsample for unit in units if unit.downsample is not None]
    assert [type(downsample) for downsample in changed] == [kind, kind]


@pytest.mark.parametrize("name", ["resnet32", "resnet", "cifar_resnet", "cifar_resnet32x", "cifar_resnet-20"])
def test_an_unknown_name_is_refused_with_an_example(name: str) -> None:
    message = (
        f"<6n\\+2>, one of resnet18, .*, resnet152, or timm/<name>, got '{name}'; for example cifar_resnet32"
    )
    with pytest.raises(RecipeError, match=message):
        ModelConfig(name=name)


def test_a_name_with_an_impossible_depth_is_refused() -> None:
    with pytest.raises(RecipeError, match="depth must be 6n"):
        ModelConfig(name="cifar_resnet33")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shortcut": "A"}, "shortcut must be B for resnet50, got 'A'; leave it out, only cifar_resnet"),
        ({"shortcut": "pool_end"}, "shortcut must be B for resnet50, got 'pool_end'"),
        ({"options": 3}, "options must be 2 for resnet50, got 3; leave it out, only cifar_resnet"),
        ({"se_ratio": 512}, "se_ratio must be from 1 to 256, .* got 512"),
        ({"name": "cifar_resnet20", "shortcut": "C"}, "shortcut must be one of A, B, .* got 'C'"),
        ({"name": "cifar_resnet20", "se_ratio": 17}, "se_ratio must be from 1 to 16, .* got 17"),
    ],
)
def test_settings_that_a_network_does_not_know_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ModelConfig(**{"name": "resnet50", **settings})


def test_a_projection_may_be_named_where_there_is_no_other_shortcut() -> None:
    assert ModelConfig(name="resnet18", shortcut="B").shortcut == "B"
