from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sidestep.backbones.cifar_resnet import CifarResNet
from sidestep.backbones.imagenet_resnet import ImageNetResNet
from sidestep.errors import RecipeError
from sidestep.layers.shortcut import PadShortcut, PoolShortcut, Shortcut
from sidestep.networks.exit_network import ExitNetwork
from sidestep.networks.families import CifarResNetSettings
from sidestep.networks.models import AttachConfig, ModelConfig, build_backbone, build_model
from tests.doubles import model_config


def test_a_name_and_its_settings_become_a_backbone() -> None:
    config = model_config("cifar_resnet14", shortcut="B", mix="branch", se_ratio=8)
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
    config = model_config(f"resnet{depth}", mix="branch", se_ratio=16)
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
    units = build_backbone(model_config("cifar_resnet14", shortcut=shortcut), 10).units
    changed = [unit.downsample for unit in units if unit.downsample is not None]
    assert [type(downsample) for downsample in changed] == [kind, kind]


@pytest.mark.parametrize(
    "name", ["cifar_resnet", "cifar_resnet32x", "cifar_resnet-20", "cifar_preact_resnet"]
)
def test_a_name_without_its_number_is_refused_with_an_example(name: str) -> None:
    family = re.match("[a-z_]+", name)[0]  # type: ignore[index]
    with pytest.raises(
        RecipeError, match=f"name must be {family} and .*, got '{name}'; for example {family}32"
    ):
        ModelConfig(name=name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet32", "resnet34"),
        ("cifar_resent32", "cifar_resnet<6n.2>"),
        ("preact_resnet18", "preact_resnet1"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    message = (
        f"name must be one of cifar_resnet<6n.2>, .*, msdnet, cascade, got '{name}'; did you mean {nearest}"
    )
    with pytest.raises(RecipeError, match=message):
        ModelConfig(name=name)


@pytest.mark.parametrize("name", ["cifar_resnet33", "cifar_preact_resnet21"])
def test_a_name_with_an_impossible_depth_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="depth must be 6n"):
        ModelConfig(name=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet50", "se_ratio": 512}, "se_ratio must be from 1 to 256, .* got 512"),
        ({"shortcut": "C"}, "shortcut must be one of A, B, .* got 'C'"),
        ({"se_ratio": 17}, "se_ratio must be from 1 to 16, .* got 17"),
    ],
)
def test_settings_of_which_no_network_can_be_built_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        model_config(**{"name": "cifar_resnet20", **settings})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ranet", {"init": "weights.safetensors"}),
        ("msdnet", {"exits": AttachConfig(at=["layer1"])}),
        ("resnet18", {"pretrained": True}),
    ],
)
def test_common_keys_that_a_model_does_not_know_are_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(change))} has no effect on '{name}'; drop it"):
        ModelConfig(name=name, **change)


def test_settings_of_another_model_are_refused() -> None:
    with pytest.raises(RecipeError, match="settings of resnet18 must be ImageNetResNetSettings, got Cifar"):
        ModelConfig(name="resnet18", settings=CifarResNetSettings())


@pytest.mark.parametrize("name", ["ranet", "msdnet"])
def test_networks_with_exits_of_their_own_are_built_for_the_number_of_classes(name: str) -> None:
    network = build_model(ModelConfig(name=name), num_classes=3)
    assert isinstance(network, ExitNetwork)
    assert network.config.num_classes == 3  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=f"name must be that of a static network, got '{name}'"):
        build_backbone(ModelConfig(name=name), 3)
