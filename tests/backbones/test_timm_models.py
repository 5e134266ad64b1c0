"""Networks of timm by name: in recipes, at the size of the images, with and without their weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from sidestep.backbones.timm_models import build_timm
from sidestep.errors import RecipeError
from sidestep.networks.models import ModelConfig, build_backbone
from tests.doubles import model_config


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit.r160_in1k"])
def test_a_name_of_timm_becomes_a_backbone_for_the_size_of_the_images(name: str) -> None:
    backbone = build_backbone(ModelConfig(name=f"timm/{name}"), num_classes=7, input_size=(32, 48))
    assert backbone(torch.zeros(2, 3, 32, 48)).shape == (2, 7)


def test_sublayers_can_be_units() -> None:
    config = model_config("timm/test_vit", units="sublayers")
    backbone = build_backbone(config, num_classes=7, input_size=(32, 32))
    assert len(backbone.units) == 2 * len(backbone.origin.blocks)


def test_without_a_size_it_is_timms() -> None:
    assert build_timm("test_vit", 7).network.patch_embed.img_size == (160, 160)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "timm/resnet5O"}, r"^name must be .*, got 'timm/resnet5O'; did you mean timm/resnet50"),
        ({"name": "timm/resnet50.a1_in1"}, r"did you mean timm/resnet50\.a1_in1k"),
        ({"name": "timm/"}, r"got 'timm/'; for example timm/convnext_tiny"),
        ({"pretrained": True, "init": "a.pth"}, r"^pretrained has no effect beside init 'a\.pth'"),
        ({"name": "timm/test_vit4", "pretrained": True}, r"^pretrained must be false for 'timm/test_vit4'"),
        ({"name": "cifar_resnet20", "pretrained": True}, r"^pretrained has no effect on 'cifar_resnet20'; "),
    ],
)  # fmt: skip
def test_names_and_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        model_config(**{"name": "timm/test_vit", **settings})


@pytest.mark.parametrize(("side", "grid"), [(30, "30 x 30"), (8, "8 x 8")])
def test_images_that_patches_do_not_cover_are_refused(side: int, grid: str) -> None:
    message = f"image_size must be a multiple .* have 16 x 16 pixels, got images of {grid}"
    with pytest.raises(RecipeError, match=message):
        build_timm("test_vit", 7, (side, side))


def test_pretrained_is_passed_on_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def trained(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
        network: nn.Module = create(name, **settings)
        if pretrained:
            nn.init.ones_(network.fc.bias)
        return network

    monkeypatch.setattr(timm, "create_model", trained)
    for pretrained in (True, False):
        backbone = build_backbone(model_config("timm/test_resnet", pretrained=pretrained), 7)
        assert bool((backbone.origin.fc.bias == 1).all()) is pretrained


@pytest.mark.parametrize("error", [FileNotFoundError("no such\nentry"), RuntimeError("wrong hash")])
def test_a_failed_download_is_one_sentence_with_the_way_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RecipeError) as caught:
        build_timm("test_vit", 7, (32, 32), pretrained=True)
    text = str(caught.value)
    assert f"'timm/test_vit' could not be downloaded or read ({type(error).__name__}); check the" in text
    assert text.endswith("set model.init to a file of them and model.pretrained to false")
    assert "\n" not in text
    with pytest.raises(type(error)):
        build_timm("test_vit", 7, (32, 32))
