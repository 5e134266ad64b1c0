"""ACT and SACT as methods: what they build, weigh and refuse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sidestep
from sidestep.backbones.preact_resnet import PreactResNet
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.losses.ponder import ponder_loss
from sidestep.methods import METHODS
from sidestep.methods.act import ACT, SACT, HaltingConfig
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import Recipe, from_dict, load_recipe
from sidestep.runs.train import train
from sidestep.types import Batch
from tests import strategies
from tests.doubles import model_config
from tests.paths import RECIPES
from tests.reference.resnet import cifar_resnet

BOTH = pytest.mark.parametrize("name", ["act", "sact"])


def tiny(name: str, model: dict[str, Any] | None = None, **training: Any) -> Recipe:
    return from_dict(
        {
            "name": "tiny",
            "method": {"name": name, "tau": 0.05},
            "model": {"name": "cifar_preact_resnet14"} | (model or {}),
            "data": {"source": "digits", "image_size": 8, "limit": 100, "crop_padding": 1},
            "training": {
                "phases": [{"name": "joint", "epochs": 2, "lr": 0.05}],
                "batch_size": 32,
                **training,
            },
        }
    )


@BOTH
def test_the_ponder_cost_is_weighted_by_tau(name: str) -> None:
    network, settings = untrained(tiny(name), num_classes=10), HaltingConfig(tau=0.3)
    assert isinstance(network, HaltingNetwork)
    images = strategies.images(4, 0)
    output, batch = network(images), Batch(images=images, labels=torch.zeros(4).long())
    terms = METHODS[name].losses(output, batch, measure_cost(network, (8, 8)), settings)
    assert list(terms) == ["ponder"]
    torch.testing.assert_close(terms["ponder"], 0.3 * ponder_loss(output.ponder))


def test_act_halts_images_and_sact_positions() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet14"), 10)
    act, sact = (method.router(backbone, HaltingConfig(eps=0.2)) for method in (ACT, SACT))
    assert (act.spatial, sact.spatial) == (False, True)
    assert act.eps == sact.eps == 0.2


def test_networks_with_more_than_two_options_are_refused() -> None:
    backbone = build_backbone(model_config("cifar_resnet8", options=3), 10)
    with pytest.raises(RecipeError, match=r"model\.options must be 2, got 3"):
        ACT.router(backbone, HaltingConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -0.1}, "tau must be at least 0"),
        ({"eps": 0.0}, "eps must be in"),
        ({"eps": 1.0}, "eps must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        HaltingConfig(**settings)


@pytest.mark.parametrize(("name", "depth"), [("act_resnet110", 110), ("sact_resnet32", 32)])
def test_the_recipes_hold_the_released_codes_numbers(name: str, depth: int) -> None:
    recipe = load_recipe(RECIPES / f"{name}_cifar10.yaml")
    (joint,) = recipe.training.phases
    steps_per_epoch = 45_000 // recipe.training.batch_size
    assert recipe.training.batch_size == 128
    for epochs, steps in zip([*joint.milestones, joint.epochs], [60, 75, 90, 100], strict=True):
        assert abs(epochs * steps_per_epoch - 1000 * steps) < 200
    assert (joint.lr, recipe.training.optimizer.momentum, recipe.data.crop_padding) == (0.1, 0.9, 2)
    assert (recipe.training.optimizer.weight_decay, recipe.training.optimizer.decayed) == (2e-4, "weights")
    assert (recipe.settings.tau, recipe.settings.eps) == (0.01, 0.01)
    assert recipe.data.per_image_standardization
    network = untrained(recipe, num_classes=10)
    assert isinstance(network.backbone, PreactResNet)
    assert network.backbone.config.depth == depth


def test_the_imagenet_recipe_holds_the_released_codes_numbers() -> None:
    recipe = load_recipe(RECIPES / "sact_resnet101_imagenet.yaml")
    (joint,) = recipe.training.phases
    assert (recipe.settings.tau, recipe.settings.eps) == (0.005, 0.01)
    assert (joint.lr, recipe.training.optimizer.momentum, recipe.training.label_smoothing) == (0.05, 0.9, 0.1)
    assert [after - before for before, after in itertools.pairwise([0, *joint.milestones, joint.epochs])] == [
        30
    ] * 3
    assert (recipe.training.optimizer.weight_decay, recipe.training.optimizer.decayed) == (1e-4, "weights")
    assert (recipe.data.image_size, recipe.data.mean, recipe.data.std) == (224, (0.5,) * 3, (0.5,) * 3)
    with torch.device("meta"):
        backbone = build_backbone(recipe.model, 1000)
        router = SACT.router(backbone, recipe.settings)
    assert isinstance(backbone, PreactResNet)
    assert [unit.stage for unit in backbone.units] == [0] * 3 + [1] * 4 + [2] * 23 + [3] * 3
    assert len(router.halting) == 33 - 4


@BOTH
def test_a_run_trains_evaluates_and_loads_like_any_other(name: str, tmp_path: Path) -> None:
    folder = train(tiny(name), tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["loss"] == pytest.approx(
        rows[-1]["train"]["task"] + rows[-1]["train"]["ponder"], rel=1e-5
    )
    masked, gathered = (sidestep.evaluate(folder, execution=way).as_dict() for way in ("masked", "gathered"))
    assert len(masked["ponder"]) == 3
    for key in ("accuracy", "gflops", "gflops_std", "keep_rates", "ponder"):
        assert gathered[key] == pytest.approx(masked[key], rel=1e-5)
    assert sidestep.load(folder)(torch.randn(2, 3, 8, 8)).ponder.shape == (2, 3)


@BOTH
def test_static_weights_with_post_activation_blocks_can_be_the_start(name: str, tmp_path: Path) -> None:
    static = build_backbone(ModelConfig(name="cifar_resnet14"), 10)
    save_file(static.state_dict(), tmp_path / "static.safetensors")
    model = {"name": "cifar_resnet14", "init": str(tmp_path / "static.safetensors")}
    recipe = tiny(name, model, max_steps=1, distillation={"weight": 1.0})
    folder = train(recipe, tmp_path / "run")
    network, images = sidestep.load(folder), strategies.images(2, 0)
    with torch.no_grad():
        expected = cifar_resnet(network.backbone.state_dict(), images)
        torch.testing.assert_close(network.backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_everything_can_be_executed_before_halting_units_learn(tmp_path: Path) -> None:
    phases = [
        {"name": "static", "epochs": 1, "train": "blocks", "paths": "full"},
        {"name": "halting", "epochs": 1, "train": "routers"},
    ]
    folder = train(tiny("act", phases=phases), tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train"]["fraction"] == pytest.approx(1.0, abs=0.01)
    assert "ponder" not in rows[0]["train"]
    assert "ponder" in rows[1]["train"]
