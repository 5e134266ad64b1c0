"""Networks of torchvision by name: in recipes, at the size of the images, with and without their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from sidestep.backbones.torchvision_models import build_torchvision
from sidestep.errors import RecipeError
from sidestep.networks.models import build_backbone
from tests.doubles import model_config


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_name_of_torchvision_becomes_a_backbone(name: str, channels: int) -> None:
    backbone = build_backbone(model_config(f"torchvision/{name}"), 3, (32, 48), channels)
    assert backbone(torch.zeros(2, channels, 32, 48)).shape == (2, 3)
    assert backbone.image_channels == channels


def test_units_can_be_named_in_a_recipe() -> None:
    config = model_config("torchvision/resnet18", units=["layer2.0", "layer2.1"])
    backbone = build_backbone(config, num_classes=3, input_size=(32, 32))
    network = backbone.origin
    assert [unit.origin for unit in backbone.units] == list(network.layer2.children())
    with pytest.raises(RecipeError, match=r"got 'layer5'; did you mean layer"):
        build_backbone(model_config("torchvision/resnet18", units=["layer5"]), 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet81",
            "name must be that of a network in torchvision, got 'torchvision/resnet81'; did you mean",
        ),
        ("", "got 'torchvision/'; for example torchvision/resnet18"),
    ],
)
def test_a_name_that_torchvision_lacks_is_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        model_config(f"torchvision/{name}")


def test_a_vit_takes_squares_of_whole_patches() -> None:
    assert build_torchvision("vit_b_32", 3, (64, 64))(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(RecipeError, match=r"must be a square of whole patches .* 32 pixels, got .* 64 x 96"):
        build_torchvision("vit_b_32", 3, (64, 96))


def test_pretrained_weights_are_kept_but_for_head_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = torchvision.models.resnet18()
    asked: list[Any] = []

    def get_model(name: str, *, weights: Any, **settings: Any) -> nn.Module:
        asked.append((name, weights, settings))
        return trained

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    before = trained.conv1.weight.detach().clone()
    network = build_torchvision("resnet18", 3, in_channels=1, pretrained=True).origin
    assert asked == [("resnet18", "DEFAULT", {})]
    torch.testing.assert_close(network.conv1.weight, before.sum(1, keepdim=True))
    assert network.fc.out_features == 3
    grey = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(
        network.conv1(grey), nn.functional.conv2d(grey.expand(-1, 3, -1, -1), before, None, 2, 3)
    )


def test_a_failed_download_is_one_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(
        RecipeError, match=r"'torchvision/resnet18' could not be .* \(OSError\); check the conn"
    ):
        build_torchvision("resnet18", 3, pretrained=True)
    with pytest.raises(OSError, match="no route"):
        build_torchvision("resnet18", 3)
