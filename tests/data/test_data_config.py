from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sidestep.data import DataConfig
from sidestep.data.downloads import TorchSettings
from sidestep.data.hub_sets import HubSettings
from sidestep.errors import RecipeError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": ""}, "source must be one of digits, torch/.*, hfds/.*, <image folder>, got ''"),
        ({"source": "hfds/"}, "source must name a hub id or a local folder behind hfds/, got 'hfds/'"),
        ({"source": "torch/cifar10"}, "root must be set for torch/cifar10, got nothing"),
        (
            {"source": "torch/mnist", "settings": TorchSettings(root="x")},
            "source must be one of torch/cifar10, torch/cifar100 of torchvision's, got 'torch/mnist'",
        ),
        (
            {"source": "some/folder", "settings": HubSettings()},
            r"settings of some/folder must be FolderSettings, got HubSettings\(root=None\)",
        ),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0; 0 holds out nothing"),
        ({"val_fraction": -0.1}, r"val_fraction must be in \[0, 1\), got -0.1"),
        ({"split_seed": -1}, "split_seed must be at least 0, got -1"),
        ({"mean": (0.5, 0.5)}, r"mean must be three numbers in \[0, 1\].* got \(0.5, 0.5\)"),
        ({"mean": (123.0, 116.0, 103.0)}, r"mean must be three numbers in \[0, 1\]"),
        ({"std": (0.2, 0.2, 0.0)}, "std must be three numbers above 0"),
        ({"std": (0.2,)}, "std must be three numbers above 0"),
        (
            {"per_image_standardization": True, "mean": (0.5, 0.5, 0.5)},
            r"mean has no effect beside per_image_standardization, .* got \(0.5, 0.5, 0.5\); drop one",
        ),
        (
            {"per_image_standardization": True, "std": (0.5, 0.5, 0.5)},
            r"std has no effect beside per_image_standardization, .* got \(0.5, 0.5, 0.5\); drop one",
        ),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"storage": "disk"}, "storage must be one of auto, memory, stream, got 'disk'"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"classes": "imagenet"}, "classes has no effect without class_indices, got imagenet; classes are"),
        (
            {"class_indices": (0, 1)},
            r"class_indices has no effect without classes, got \(0, 1\); classes are",
        ),
        ({"classes": 1, "class_indices": (0,)}, "classes must be 2 or more, a file of names, or imagenet"),
        ({"classes": 5, "class_indices": ()}, "class_indices must be one index of a class for every label"),
        ({"classes": 5, "class_indices": (-1, 2)}, r"0 or more and all different, got \[-1, 2\]"),
        ({"classes": 5, "class_indices": (2, 2)}, r"0 or more and all different, got \[2, 2\]"),
        ({"classes": 5, "class_indices": (2, 5)}, "class_indices must be below classes, 5, got 5"),
        (
            {"storage": "stream", "crop_padding": 2},
            "crop_padding has no effect on a streamed set.* got 2; drop",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_rule_and_value(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        DataConfig(**settings)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_the_rdi_net_recipe() -> None:
    config = DataConfig()
    assert config.mean == (0.4914, 0.4822, 0.4465)
    assert config.std == (0.2023, 0.1994, 0.2010)
    assert (config.crop_padding, config.flip) == (4, True)
    assert not config.per_image_standardization


def test_a_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        DataConfig().flip = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        DataConfig("digits")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "source", ["digits", "hfds/uoft-cs/cifar10", "hfds//abs", "hfds/../up", "photos", "/abs"]
)
def test_every_form_of_source_is_accepted(source: str) -> None:
    assert DataConfig(source=source).source == source


def test_images_that_lie_elsewhere_keep_what_their_source_knows() -> None:
    config = DataConfig(source="hfds/uoft-cs/cifar10", settings=HubSettings(root="cache"), image_size=32)
    assert config.at("hfds//data/cifar10") == DataConfig(
        source="hfds//data/cifar10", settings=HubSettings(root="cache"), image_size=32
    )
    assert config.at("photos") == DataConfig(source="photos", image_size=32)
