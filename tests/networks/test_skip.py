"""Networks whose skipped stage openers return their shortcut without ReLU, or a projection of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import sidestep
from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import load_static_weights
from sidestep.cost.macs import measure_cost
from sidestep.errors import CheckpointError, RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.layers.residual import Skip
from sidestep.layers.shortcut import Shortcut
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import GumbelSoftmax
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict, load_recipe
from sidestep.runs.train import train
from tests import strategies
from tests.doubles import (
    TableRouter,
    branch_rows,
    enliven,
    lively_backbone,
    lively_network,
    model_config,
    noise,
)
from tests.doubles import shared_network as shared
from tests.paths import RECIPES
from tests.reference.macs import CountedMacs
from tests.reference.resnet import cifar_resnet

KINDS: list[tuple[Shortcut, Skip]] = [("B", "linear"), ("A", "own"), ("B", "own"), ("pool_end", "own")]
EVERY_KIND = pytest.mark.parametrize(("shortcut", "skip"), KINDS)
PROJECTION = 131_072.0  # 1x1 convolutions from 16 to 32 at 16x16 and from 32 to 64 at 8x8


@given(st.sampled_from(KINDS), st.data())
def test_gathered_equals_masked_and_costs_what_is_counted(
    kind: tuple[Shortcut, Skip], data: st.DataObject
) -> None:
    network = shared(14, *kind)
    table = data.draw(strategies.execution_tables(6))
    images = strategies.images(len(table), data.draw(strategies.seeds))
    with torch.no_grad():
        expected = network(images, router=TableRouter(table))
        with branch_rows(network.backbone) as rows, CountedMacs() as counted:
            actual = network(images, router=TableRouter(table), execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert rows == table.sum(dim=0).tolist()
    cost = measure_cost(network, (8, 8))
    assert sum(counted.macs) == cost.per_sample(actual.decisions, routers=False).sum().item()


@EVERY_KIND
def test_a_network_that_skips_nothing_is_the_static_one(shortcut: Shortcut, skip: Skip) -> None:
    backbone, images = shared(14, shortcut, skip).backbone, strategies.images(3, 0)
    with torch.no_grad():
        expected = cifar_resnet(backbone.state_dict(), images, shortcut)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)
        routed = RoutedNetwork(backbone, ConstantRouter.keep([1.0] * 6))(images)
    torch.testing.assert_close(routed.logits, expected, rtol=1e-4, atol=1e-5)


def test_a_network_of_shortcuts_is_linear_with_linear_and_its_own_projections_with_own() -> None:
    images = strategies.images(2, 0)
    for shortcut, skip in KINDS:
        backbone = shared(14, shortcut, skip).backbone
        with torch.no_grad():
            x = backbone.stem(images)
            for unit in (backbone.units[2], backbone.units[4]):
                x = unit.downsample(x) if skip == "linear" else unit.bypass(x)
            skipped = RoutedNetwork(backbone, ConstantRouter.keep([0.0] * 6))(images).logits
            torch.testing.assert_close(skipped, backbone.head(x), rtol=1e-5, atol=1e-5)
        assert bool((x < 0).any()) == (skip == "linear")


@pytest.mark.parametrize(("shortcut", "executed"), [("A", 0.0), ("B", PROJECTION)])
def test_the_projection_of_its_own_is_paid_by_those_who_skip_and_by_no_one_else(
    shortcut: Shortcut, executed: float
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(model_config("cifar_resnet20", shortcut=shortcut, skip="own"), 10)
    cost = measure_cost(RoutedNetwork(backbone), (32, 32))
    openers = {3, 6}
    assert cost.options[:, 0].tolist() == [PROJECTION if n in openers else 0.0 for n in range(9)]
    assert cost.options[:, 1].tolist() == [
        3_538_944 + executed if n in openers else 4_718_592 for n in range(9)
    ]
    assert cost.full == 40_551_040 + 2 * executed


def test_masked_execution_computes_the_projection_and_the_block_for_every_image() -> None:
    network, images = shared(14, "A", "own"), strategies.images(3, 0)
    with torch.no_grad(), CountedMacs() as counted:
        network(images, router=TableRouter(torch.zeros(3, 6)))
    options = measure_cost(network, (8, 8)).options
    fixed = measure_cost(network, (8, 8)).fixed
    assert sum(counted.macs) == 3 * (fixed + options.sum().item())


def test_own_projections_of_resnet_50_cost_what_its_shortcuts_cost() -> None:
    with torch.device("meta"):
        backbone = build_backbone(model_config("resnet50", skip="own"), 1000)
    cost = measure_cost(RoutedNetwork(backbone), (224, 224))
    openers = {0: 51_380_224.0, 3: 102_760_448.0, 7: 102_760_448.0, 13: 102_760_448.0}
    assert cost.options[:, 0].tolist() == [openers.get(unit, 0.0) for unit in range(16)]
    assert cost.full == 4_089_184_256


@pytest.mark.parametrize("skip", ["linear", "own"])
@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_networks_skip_alike_in_both_executions(depth: int, skip: Skip) -> None:
    backbone = build_backbone(model_config(f"resnet{depth}", skip=skip), 7)
    enliven(backbone)
    network, images = RoutedNetwork(backbone.eval()), strategies.images(4, 0, size=40)
    table = torch.randint(0, 2, (4, len(backbone.units)), generator=strategies.generator(depth))
    router = TableRouter(table)
    with torch.inference_mode():
        expected = network(images, router=router)
        with CountedMacs() as counted:
            actual = network(images, router=router, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    cost = measure_cost(network, (40, 40))
    assert sum(counted.macs) == cost.per_sample(actual.decisions, routers=False).double().sum().item()


@EVERY_KIND
def test_three_options_are_gathered_and_priced_like_two(shortcut: Shortcut, skip: Skip) -> None:
    network = RoutedNetwork(lively_backbone(8, shortcut, options=3, skip=skip))
    router = TableRouter(torch.tensor([[2, 0, 1], [0, 1, 0], [1, 2, 0], [2, 0, 0]]), 3)
    images = strategies.images(4, 0)
    with torch.no_grad():
        expected = network(images, router=router)
        with CountedMacs() as counted:
            actual = network(images, router=router, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    cost = measure_cost(network, (8, 8))
    assert sum(counted.macs) == cost.per_sample(actual.decisions, routers=False).sum().item()
    assert bool((cost.options.diff(dim=1) > 0).all())


@EVERY_KIND
def test_a_prepared_network_has_no_norm_and_the_same_output(shortcut: Shortcut, skip: Skip) -> None:
    network, images = lively_network(14, shortcut, skip=skip), strategies.images(8, 0)
    prepared = prepare(network, images[:1])
    with torch.inference_mode():
        expected, actual = network(images), prepared(images, execution=gathered)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in prepared.modules())
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)


@EVERY_KIND
@pytest.mark.parametrize("hard", [False, True])
def test_a_training_step_reaches_every_parameter(shortcut: Shortcut, skip: Skip, hard: bool) -> None:
    network = lively_network(8, shortcut, skip=skip).train()
    output = network(strategies.images(8, 0), sampler=GumbelSoftmax(noise=noise(), hard=hard))
    output.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    bypass = [p for name, p in network.named_parameters() if "bypass.0" in name]
    assert len(bypass) == (2 if skip == "own" else 0)
    assert all(bool(p.grad.any()) for p in bypass)


@EVERY_KIND
def test_autocast_gives_gathered_and_masked_the_same_dtype_and_values(shortcut: Shortcut, skip: Skip) -> None:
    network, images = shared(8, shortcut, skip), strategies.images(4, 0)
    router = TableRouter(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images, router=router).logits
        actual = network(images, router=router, execution=gathered).logits
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


def own(shortcut: Shortcut = "A", depth: int = 8) -> Backbone:
    return build_backbone(model_config(f"cifar_resnet{depth}", shortcut=shortcut, skip="own"), 10)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_static_weights_load_and_leave_the_projection_as_it_was_made(
    tmp_path: Path, shortcut: Shortcut
) -> None:
    static = build_backbone(model_config("cifar_resnet8", shortcut=shortcut), 10)
    enliven(static)
    save_file(static.state_dict(), tmp_path / "static.safetensors")
    backbone = own(shortcut)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if "bypass" in name}
    load_static_weights(backbone, tmp_path / "static.safetensors")
    after = backbone.state_dict()
    assert set(before) == backbone.skip_names
    assert len(before) == 2 * 6
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in static.state_dict().items())


def test_weights_that_have_the_projection_fill_it_and_other_gaps_are_refused(tmp_path: Path) -> None:
    trained = own()
    save_file(trained.state_dict(), tmp_path / "own.safetensors")
    backbone = own()
    load_static_weights(backbone, tmp_path / "own.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), trained.parameters(), strict=True))
    gap = {name: t for name, t in trained.state_dict().items() if name != "layer2.0.conv1.weight"}
    save_file(gap, tmp_path / "gap.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks layer2\.0\.conv1\.weight"):
        load_static_weights(own(), tmp_path / "gap.safetensors")


def tiny(method: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "tiny",
        "method": method,
        "model": {"name": "cifar_resnet8", **model},
        "data": {"source": "digits", "image_size": 8, "limit": 100, "crop_padding": 1},
        "training": {"phases": [{"name": "joint", "epochs": 1}], "batch_size": 32, "max_steps": 2},
    }


def test_a_run_from_static_weights_learns_the_projection_and_is_read_back(tmp_path: Path) -> None:
    static = build_backbone(ModelConfig(name="cifar_resnet8"), 10)
    save_file(static.state_dict(), tmp_path / "static.safetensors")
    model = {"skip": "own", "init": str(tmp_path / "static.safetensors")}
    values = tiny({"name": "codinet", "num_units": 1}, model)
    values["training"]["distillation"] = {"weight": 1.0}
    folder = train(from_dict(values), tmp_path / "run")
    start = untrained(from_dict(values), num_classes=10).backbone.units[1].bypass
    learnt = sidestep.load(folder).backbone.units[1].bypass
    assert isinstance(start, nn.Sequential) and isinstance(learnt, nn.Sequential)
    assert not torch.equal(start[0].weight, learnt[0].weight)
    torch.testing.assert_close(start[0].weight, learnt[0].weight, rtol=0, atol=0.5)
    masked, gathered = (sidestep.evaluate(folder, execution=way).as_dict() for way in ("masked", "gathered"))
    assert masked["gflops"] == gathered["gflops"]
    assert masked["accuracy"] == gathered["accuracy"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"skip": "linear"}, "skip 'linear' has no effect on shortcut 'A'"),
        ({"skip": "own", "mix": "branch"}, "skip must be relu with mix 'branch'"),
        ({"name": "resnet50", "skip": "own", "mix": "branch"}, "skip must be relu with mix 'branch'"),
    ],
)
def test_a_skip_without_effect_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        model_config(**{"name": "cifar_resnet8", **model})


@pytest.mark.parametrize("skip", ["linear", "own"])
def test_imagenet_networks_and_three_options_take_both(skip: Skip) -> None:
    assert model_config("resnet18", skip=skip).settings.skip == skip
    assert model_config("cifar_resnet8", shortcut="B", options=3, skip=skip).settings.skip == skip


@pytest.mark.parametrize("method", ["static", "act", "sact"])
def test_methods_that_skip_no_opener_refuse_it(method: str) -> None:
    with pytest.raises(RecipeError, match=f"model.skip has no effect under {method}, .* got 'own'; drop it"):
        from_dict(tiny({"name": method}, {"skip": "own"}))


def literal_skipnet(block: Any, x: Tensor, gate: Tensor) -> Tensor:
    """Return SkipNet's m * block(x) + (1 - m) * downsample(x), the second without ReLU."""
    gate = gate.view(-1, 1, 1, 1)
    return gate * torch.relu(block.branch(x) + block.downsample(x)) + (1 - gate) * block.downsample(x)


@given(strategies.seeds)
def test_a_linear_skip_is_skipnets_formula_in_value_and_gradient(seed: int) -> None:
    generator = strategies.generator(seed)
    block = shared(8, "B", "linear").backbone.units[1]
    gradients: list[list[Tensor]] = []
    for literal in (False, True):
        x = torch.rand(3, 16, 6, 6, generator=generator.manual_seed(seed)).requires_grad_()
        gate = torch.rand(3, generator=generator).requires_grad_()
        weights = torch.stack([1 - gate, gate], dim=1)
        out = literal_skipnet(block, x, gate) if literal else block(x, weights)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), [x, gate])])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "shortcut", "skip"), [("codinet", "A", "own"), ("skipnet", "B", "linear")]
)
def test_the_recipes_of_codinet_and_skipnet_skip_as_their_released_code(
    recipe: str, shortcut: Shortcut, skip: Skip
) -> None:
    model = load_recipe(RECIPES / f"{recipe}_resnet110_cifar10.yaml").model
    assert (model.settings.skip, model.settings.shortcut) == (skip, shortcut)
