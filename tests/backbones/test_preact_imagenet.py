"""Pre-activation ResNets for photographs: timm's networks, the papers' halting, and their prices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sidestep.backbones.preact_resnet import PreactResNet, PreactResNetConfig
from sidestep.backbones.static_weights import load_static_weights
from sidestep.cost.macs import measure_cost
from sidestep.errors import CheckpointError, RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.methods.act import ACT, SACT, HaltingConfig
from sidestep.networks.halting_network import HaltingNetwork
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import HALTING_SIZE, branch_rows, enliven, halting_network, shared_halting_network
from tests.reference import halting as reference
from tests.reference.macs import CountedMacs

SPATIAL = pytest.mark.parametrize("spatial", [False, True], ids=["act", "sact"])
STAGES = [3, 4, 6, 3]
OPENERS = {0, 3, 7, 13}
# Parameters are timm's, MACs those of the post-activation networks, whose convolutions are the same.
PARAMETERS_AND_MACS = {
    50: (25_549_352, 4_089_184_256),
    101: (44_541_480, 7_801_405_440),
    152: (60_185_128, 11_513_626_624),
}


def on_meta(depth: int, num_classes: int = 1000) -> PreactResNet:
    with torch.device("meta"):
        return PreactResNet(PreactResNetConfig(depth=depth, num_classes=num_classes, images="imagenet"))


def network(*, spatial: bool) -> HaltingNetwork:
    return shared_halting_network(50, spatial=spatial, images="imagenet")


def images(batch: int, seed: int = 0) -> Tensor:
    return strategies.images(batch, seed, size=HALTING_SIZE)


@cache
def timms() -> nn.Module:
    """Return a lively network of timm that no test may change."""
    torch.manual_seed(0)
    theirs = timm.create_model("resnetv2_50", num_classes=10)
    enliven(theirs)
    return theirs.eval()


@pytest.mark.parametrize("depth", PARAMETERS_AND_MACS)
def test_parameters_and_macs_digit_for_digit(depth: int) -> None:
    parameters, macs = PARAMETERS_AND_MACS[depth]
    assert sum(p.numel() for p in on_meta(depth).parameters()) == parameters
    assert measure_cost(RoutedNetwork(on_meta(depth)), (224, 224)).full == macs


def test_the_released_codes_own_test_counts_two_operations_for_each_of_these_macs() -> None:
    """It expects 15,602,814,976 of ResNet-101 with 1001 classes."""
    cost = measure_cost(RoutedNetwork(on_meta(101, num_classes=1001)), (224, 224))
    assert 2 * cost.full == 15_602_814_976


def test_resnet_50_is_priced_by_parts() -> None:
    cost = measure_cost(RoutedNetwork(on_meta(50)), (224, 224))
    assert cost.fixed == 118_013_952 + 2_048_000
    projections = [0.0] * 16
    projections[0], projections[3], projections[7], projections[13] = 51_380_224.0, *[102_760_448.0] * 3
    assert cost.options[:, 0].tolist() == projections
    branches = [269_746_176.0 if unit in OPENERS else 218_365_952.0 for unit in range(16)]
    branches[0] = 179_830_784.0
    assert (cost.options[:, 1] - cost.options[:, 0]).tolist() == branches


def test_units_lie_in_the_stages_of_the_table_and_halve_in_the_first_of_each() -> None:
    backbone = on_meta(50)
    units = backbone.units
    assert [unit.stage for unit in units] == [
        stage for stage, count in enumerate(STAGES) for _ in range(count)
    ]
    assert {index for index, unit in enumerate(units) if not unit.keeps_input} == OPENERS
    x, sides = backbone.stem(torch.empty(1, 3, 224, 224, device="meta")), []
    for unit in units:
        x = unit.execute(x)
        sides.append(x.shape[2])
    assert sides == [56] * 3 + [28] * 4 + [14] * 6 + [7] * 3


def test_with_the_weights_of_timm_the_output_is_timms(tmp_path: Path) -> None:
    path = tmp_path / "resnetv2_50.safetensors"
    save_file(timms().state_dict(), path)
    mine = build_backbone(ModelConfig(name="preact_resnet50"), 10).eval()
    load_static_weights(mine, path)
    photographs = strategies.images(2, 0, size=72)  # 3x3 features in front of the head
    with torch.no_grad():
        torch.testing.assert_close(mine(photographs), timms()(photographs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", PARAMETERS_AND_MACS)
def test_every_tensor_of_timms_networks_has_its_place_here(depth: int) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"resnetv2_{depth}").state_dict()
    mine = on_meta(depth)
    shapes = {mine.static_name(name): tensor.numel() for name, tensor in theirs.items()}
    assert shapes == {name: tensor.numel() for name, tensor in mine.state_dict().items()}


def test_own_names_stay_and_weights_of_post_activation_blocks_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone(ModelConfig(name="preact_resnet50"), 10)
    assert all(backbone.static_name(name) == name for name in backbone.state_dict())
    post = build_backbone(ModelConfig(name="resnet50"), 10)
    save_file(post.state_dict(), tmp_path / "post.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit PreactResNet: it"):
        load_static_weights(backbone, tmp_path / "post.safetensors")


def test_the_head_normalises_before_it_averages() -> None:
    backbone = network(spatial=False).backbone
    features = torch.randn(2, 2048, 3, 3)
    with torch.no_grad():
        expected = backbone.fc(torch.relu(backbone.bn(features)).mean(dim=(2, 3)))
        torch.testing.assert_close(backbone.head(features), expected)


def test_static_networks_route_gather_and_prepare() -> None:
    backbone = network(spatial=False).backbone
    static = RoutedNetwork(backbone)
    prepared = prepare(static, images(2))
    with torch.inference_mode():
        expected = static(images(3)).logits
        torch.testing.assert_close(prepared(images(3)).logits, expected, rtol=1e-4, atol=1e-4)


def test_halting_units_of_photographs_have_no_activation_and_those_of_cifar_a_leaky_one() -> None:
    styles = {}
    for name in ("cifar_preact_resnet14", "cifar_resnet14", "preact_resnet50", "resnet18"):
        with torch.device("meta"):
            backbone = build_backbone(ModelConfig(name=name), 10)
            act, sact = (method.router(backbone, HaltingConfig()) for method in (ACT, SACT))
        units = [*act.halting.values(), *sact.halting.values()]
        (styles[name],) = {(unit.style.leak, unit.style.eps) for unit in units}
        norms = [
            m for unit in units for m in unit.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
        ]
        assert {norm.eps for norm in norms} == {styles[name][1]}
    cifar, photographs = (0.1, 1e-3), (1.0, 1e-5)
    assert list(styles.values()) == [cifar, cifar, photographs, photographs]


@pytest.mark.parametrize("seed", [0, 1])
def test_act_equals_the_literal_loop_over_images(seed: int) -> None:
    act, batch = network(spatial=False), images(2, seed)
    with torch.no_grad():
        output = act(batch)
        literal = [reference.act_image(act, image, reference.IMAGENET) for image in batch]
    for row, expected in enumerate(literal):
        torch.testing.assert_close(output.logits[row], expected["logits"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(output.ponder[row], expected["ponder"], rtol=1e-4, atol=1e-4)
        assert output.decisions.execution()[row].tolist() == expected["executed"]


def test_sact_equals_the_literal_loop_over_positions_and_costs_what_it_needs() -> None:
    sact, batch = network(spatial=True), images(1, 3)
    cost = measure_cost(sact, (HALTING_SIZE, HALTING_SIZE))
    with torch.no_grad():
        output = sact(batch)
        expected = reference.sact_image(sact, batch[0], reference.IMAGENET)
    torch.testing.assert_close(output.logits[0], expected["logits"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.ponder[0], expected["ponder"], rtol=1e-4, atol=1e-4)
    macs = 3 * 64 * 49 * 16 * 16 + 2048 * 10
    for index, needed in enumerate(expected["positions"]):
        macs += literal_macs(sact, index, needed)
    assert cost.per_sample(output.decisions).item() == pytest.approx(macs, rel=1e-5)


def literal_macs(sact: HaltingNetwork, index: int, needed: dict[str, float]) -> float:
    """Return the MACs of a unit, and of the halting unit behind it, at the positions that need them."""
    unit: Any = sact.backbone.units[index]
    area, channels = (64, 16, 4, 1)[unit.stage], unit.conv3.out_channels
    if index in OPENERS:
        # A stage opener is computed everywhere, its first convolution in the size of its input.
        before = area if unit.stage == 0 else 4 * area
        macs = unit.conv1.weight.numel() * before
        macs += area * (
            unit.conv2.weight.numel() + unit.conv3.weight.numel() + unit.downsample.weight.numel()
        )
    else:
        macs = area * unit.conv1.weight.numel() * needed["conv1"]
        macs += area * (unit.conv2.weight.numel() + unit.conv3.weight.numel()) * needed["conv2"]
    if index + 1 < 16 and index + 1 not in OPENERS:
        macs += 9 * channels * area * needed["conv2"] + channels * (needed["conv2"] > 0)
    return float(macs)


@SPATIAL
def test_gradients_equal_the_literal_ones(spatial: bool) -> None:
    literal = reference.sact_image if spatial else reference.act_image
    halting, batch = network(spatial=spatial), images(1, 5)
    parameters = list(halting.parameters())
    results = []
    for ours in (True, False):
        if ours:
            output = halting(batch)
            logits, ponder = output.logits, output.ponder
        else:
            values = literal(halting, batch[0], reference.IMAGENET)
            logits, ponder = values["logits"].unsqueeze(0), values["ponder"].unsqueeze(0)
        loss = logits.square().sum() + ponder.square().sum()
        results.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    assert any(grad is not None and bool(grad.any()) for grad in results[0][-8:])
    for actual, expected in zip(*results, strict=True):
        actual, expected = (torch.zeros(()) if grad is None else grad for grad in (actual, expected))
        scale = expected.abs().max().item() + 1e-3
        torch.testing.assert_close(actual / scale, expected.expand_as(actual) / scale, rtol=1e-3, atol=1e-3)


@SPATIAL
@pytest.mark.parametrize("batch", [1, 5])
def test_gathered_equals_masked_and_images_that_have_halted_enter_no_branch(
    spatial: bool, batch: int
) -> None:
    halting = network(spatial=spatial)
    with torch.inference_mode():
        expected = halting(images(batch, 7))
        with branch_rows(halting.backbone) as rows, CountedMacs() as counted:
            actual = halting(images(batch, 7), execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.ponder, expected.ponder, rtol=1e-4, atol=1e-4)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    assert rows == (expected.decisions.execution() > 0).sum(dim=0).tolist()
    if not spatial:
        cost = measure_cost(halting, (HALTING_SIZE, HALTING_SIZE))
        assert sum(counted.macs) == cost.per_sample(actual.decisions).double().sum().item()


@SPATIAL
def test_lively_networks_halt_at_several_places(spatial: bool) -> None:
    with torch.no_grad():
        execution = network(spatial=spatial)(images(16, 9)).decisions.execution()
    assert len(execution.unique(dim=0)) > 3
    assert bool((execution[:, sorted(OPENERS)] == 1).all())
    assert 0.1 < execution.mean() < 0.95


@SPATIAL
def test_a_prepared_network_computes_the_same(spatial: bool) -> None:
    halting = network(spatial=spatial)
    prepared = prepare(halting, images(1))
    with torch.inference_mode():
        expected, actual = halting(images(4)), prepared(images(4), execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual.ponder, expected.ponder, rtol=1e-3, atol=1e-3)


@SPATIAL
def test_a_training_step_reaches_every_parameter(spatial: bool) -> None:
    torch.manual_seed(0)
    halting = halting_network(50, spatial=spatial, images="imagenet").train()
    for name, parameter in halting.router.named_parameters():  # type: ignore[union-attr]
        if name.endswith("score.bias"):
            nn.init.constant_(parameter, -1.5)
    output = halting(images(4))
    (output.logits.square().sum() + output.ponder.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in halting.parameters())


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet34"])
def test_depths_without_bottlenecks_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"name must be one of .*, preact_resnet50, .* got '{name}'"):
        ModelConfig(name=name)


def test_depths_and_images_that_are_not_known_are_refused() -> None:
    with pytest.raises(RecipeError, match="depth must be one of 50, 101, 152 on ImageNet, got 34"):
        PreactResNetConfig(depth=34, images="imagenet")
    with pytest.raises(RecipeError, match="images must be one of cifar, imagenet, got 'photos'"):
        PreactResNetConfig(images="photos")  # type: ignore[arg-type]  # on purpose
