"""Every model is built for grey and for colour, for rectangles, and refuses images that it cannot take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import sidestep
from sidestep.errors import ExecutionError, RecipeError, SidestepError
from sidestep.evaluation.bench import bench_network
from sidestep.networks.models import Model
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict

SMALL: dict[str, Any] = {"channels": 4, "growth": 4}
MODELS: dict[str, dict[str, Any]] = {
    "cifar_resnet8": {},
    "cifar_resnet8, pool": {"shortcut": "pool_end"},
    "cifar_resnet8, pool both": {"shortcut": "pool_both"},
    "cifar_resnet8, exits": {"exits": {"at": ["layer1"], "width": 8}},
    "cifar_preact_resnet8": {},
    "resnet18": {},
    "preact_resnet50": {},
    "timm/resnet10t": {},
    "timm/convnext_atto": {},
    "timm/test_vit": {},
    "ranet": SMALL | {"scale_list": [1, 2], "blocks": 2, "step": 2, "gr_factor": [2, 1], "bn_factor": [2, 1]},
    "ranet, imagenet": {"stem": "imagenet"},
    "msdnet": SMALL | {"num_scales": 2, "blocks": 2, "gr_factor": [1, 2], "bn_factor": [1, 2]},
    "msdnet, imagenet": {"stem": "imagenet"},
}


def recipe_of(case: str, method: str | None = None, **data: Any) -> sidestep.Recipe:
    name = case.partition(",")[0]
    own = name if name in ("ranet", "msdnet") else "rdi_net"
    return from_dict(
        {
            "name": "tiny",
            "method": {"name": method or own},
            "model": {"name": name, **MODELS.get(case, {})},
            "data": {"source": "digits", **data},
            "training": {"phases": [{"name": "joint", "epochs": 1}], "max_steps": 1, "batch_size": 16},
        }
    )


def refusal(case: str, size: tuple[int, int]) -> str | None:
    """Return what is said of images that a model cannot take, or None after training on them."""
    try:
        network = untrained(recipe_of(case), num_classes=5, input_size=size)
        assert sidestep.measure_cost(network, size).full > 0
    except SidestepError as error:
        return str(error)
    network.train()(torch.randn(2, 3, *size))
    return None


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (8, 8), (16, 16), (33, 47), (32, 64)])
def test_a_model_takes_images_or_says_why_not(case: str, size: tuple[int, int]) -> None:
    said = refusal(case, size)
    if said is not None:
        assert re.match(rf"data.image_size must be .*{size[0]} x {size[1]}", said) and "\n" not in said


def test_the_smallest_convnext_is_named() -> None:
    network = untrained(recipe_of("timm/convnext_atto"), num_classes=5, input_size=(8, 8))
    # torch 2.11 writes sizes as lists, later releases as products.
    message = r"one that the network can take, for example 32, got 8 x 8: .*input size per channel: [\[(]1"
    with pytest.raises(RecipeError, match=message):
        sidestep.measure_cost(network, (8, 8))


def test_too_small_images_end_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="for example 32, got 8 x 8"):
        sidestep.train(recipe_of("timm/convnext_atto", image_size=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_another_kind_is_not_blamed_on_the_size() -> None:
    network: Any = untrained(recipe_of("cifar_resnet8"), num_classes=5)
    network.backbone.fc = torch.nn.Linear(7, 5)
    with pytest.raises(RuntimeError, match="must have same reduction dim"):
        sidestep.measure_cost(network, (32, 32))


@pytest.mark.parametrize("case", MODELS)
def test_a_model_is_built_for_grey_images(case: str) -> None:
    grey, colour = (
        untrained(recipe_of(case, channels=channels), num_classes=5, input_size=(64, 64))
        for channels in (1, 3)
    )
    assert (grey.image_channels, colour.image_channels) == (1, 3)
    macs = [sidestep.measure_cost(network, (64, 64)).full for network in (grey, colour)]
    assert 0 < macs[0] < macs[1]
    assert grey.eval()(torch.zeros(2, 1, 64, 64)).logits.shape == (2, 5)


@pytest.mark.parametrize(
    "method", ["blockdrop", "random_drop", "skipnet", "convnet_aig", "act", "sact", "static"]
)
def test_a_method_routes_grey_images(method: str) -> None:
    model = "cifar_preact_resnet8" if method == "act" else "cifar_resnet8"
    network = untrained(recipe_of(model, method, channels=1), num_classes=5, input_size=(32, 32))
    assert sidestep.measure_cost(network, (32, 32)).full > 0
    assert network.eval()(torch.zeros(2, 1, 32, 32)).logits.shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "test_vit"])
def test_a_wrapped_network_is_priced_by_its_own_channels(name: str) -> None:
    size = 160 if name == "test_vit" else 64
    for channels in (1, 3, 4):
        network = sidestep.wrap(timm.create_model(name, in_chans=channels), router={"dim": 8}).eval()
        assert network.image_channels == channels
        assert sidestep.measure_cost(network, (size, size)).full > 0
        with pytest.raises(ExecutionError, match=rf"of shape \({channels}, {size}, {size}\), got"):
            bench_network(network, input_size=(size, size), images=torch.zeros(1, 2, size, size))


def test_a_model_for_colour_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from sidestep.networks.families import CifarResNetSettings, build_cifar
    from sidestep.networks.models import MODELS as KNOWN

    plain: Any = Model(
        name="plain", summary="plain", settings=CifarResNetSettings, build=lambda *args: build_cifar(*args)
    )
    items = {"plain": plain, "cifar_resnet8": KNOWN["cifar_resnet8"]}
    monkeypatch.setattr("sidestep.networks.models.MODELS", items)
    from sidestep.networks.models import ModelConfig, build_model

    config = ModelConfig(name="cifar_resnet8")
    object.__setattr__(config, "name", "plain")
    message = "data.channels must be 3 for model plain, which takes no other images, got 1"
    with pytest.raises(RecipeError, match=message):
        build_model(config, 5, (32, 32), channels=1)
