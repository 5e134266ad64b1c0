from __future__ import annotations

import copy
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sidestep.backbones.imagenet_resnet import ImageNetResNet, ImageNetResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.layers.residual import Mix
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.relational import RelationalConfig
from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import GumbelSoftmax
from sidestep.types import CostModel
from tests import strategies
from tests.doubles import TableRouter, branch_rows, enliven, lively_routed, noise, relational_router
from tests.reference.macs import CountedMacs

PARAMETERS_AND_MACS = {
    (18, None): (11_689_512, 1_814_073_344),
    (34, None): (21_797_672, 3_663_761_408),
    (50, None): (25_557_032, 4_089_184_256),
    (101, None): (44_549_160, 7_801_405_440),
    (152, None): (60_192_808, 11_513_626_624),
    (50, 16): (28_088_024, 4_091_699_200),
    (101, 16): (49_326_872, 7_806_148_608),
}
DEPTHS = [18, 34, 50, 101, 152]
# One network of each kind of block, without and with squeeze-and-excitation.
SMALL = pytest.mark.parametrize(("depth", "se_ratio"), [(18, None), (18, 16), (50, None), (50, 16)])
SIZE = 40


def on_meta(depth: int, se_ratio: int | None = None) -> ImageNetResNet:
    with torch.device("meta"):
        return ImageNetResNet(ImageNetResNetConfig(depth=depth, se_ratio=se_ratio))


def cost_of(depth: int, se_ratio: int | None = None, size: tuple[int, int] = (224, 224)) -> CostModel:
    return measure_cost(RoutedNetwork(on_meta(depth, se_ratio)), size)


@cache
def shared(depth: int, se_ratio: int | None, mix: Mix = "output") -> RoutedNetwork:
    """Return a lively network that no test may change; features of 40x40 images end as 2x2."""
    torch.manual_seed(depth)
    config = ImageNetResNetConfig(depth=depth, num_classes=7, se_ratio=se_ratio, mix=mix)
    backbone = ImageNetResNet(config)
    enliven(backbone)
    return lively_routed(backbone.eval(), images(16, seed=1))


def images(batch: int, seed: int = 0) -> Tensor:
    return strategies.images(batch, seed, size=SIZE)


@pytest.mark.parametrize(("depth", "se_ratio"), PARAMETERS_AND_MACS)
def test_parameters_and_macs_are_those_of_the_specification_digit_for_digit(
    depth: int, se_ratio: int | None
) -> None:
    parameters, macs = PARAMETERS_AND_MACS[depth, se_ratio]
    assert sum(p.numel() for p in on_meta(depth, se_ratio).parameters()) == parameters
    assert cost_of(depth, se_ratio).full == macs


def test_resnet_50_is_priced_by_parts_as_in_the_specification() -> None:
    cost = cost_of(50)
    assert cost.fixed == 118_013_952 + 2_048_000
    openers = {0: 51_380_224.0, 3: 102_760_448.0, 7: 102_760_448.0, 13: 102_760_448.0}
    assert cost.options[:, 0].tolist() == [openers.get(unit, 0.0) for unit in range(16)]
    branches = [269_746_176.0 if unit in openers else 218_365_952.0 for unit in range(16)]
    branches[0] = 179_830_784.0
    assert (cost.options[:, 1] - cost.options[:, 0]).tolist() == branches


def test_relational_routers_of_resnet_50_cost_what_the_specification_says() -> None:
    backbone = on_meta(50)
    with torch.device("meta"):
        router = relational_router(backbone, RelationalConfig(dim=256, batch_norm=False))
    assert sum(p.numel() for p in router.parameters()) == 4_419_616
    cost = measure_cost(RoutedNetwork(backbone, router), (64, 64))
    assert cost.routers.sum().item() == 4_415_488


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_those_of_torchvision_and_timm(depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(), timm.create_model(f"resnet{depth}")
    mine = {name: tensor.shape for name, tensor in on_meta(depth).state_dict().items()}
    for network in theirs:
        assert {name: tensor.shape for name, tensor in network.state_dict().items()} == mine


@pytest.mark.parametrize("source", ["torchvision", "timm"])
@pytest.mark.parametrize("depth", [18, 50])
def test_with_the_weights_of_torchvision_or_timm_the_output_is_theirs(depth: int, source: str) -> None:
    name = f"resnet{depth}"
    theirs = getattr(torchvision.models, name)() if source == "torchvision" else timm.create_model(name)
    enliven(theirs)
    with torch.device("meta"):
        mine = ImageNetResNet(ImageNetResNetConfig(depth=depth))
    mine.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(images(2)), theirs.eval()(images(2)), rtol=1e-5, atol=1e-5)


def test_units_carry_the_widths_and_stages_that_routers_need() -> None:
    units = on_meta(50).units
    assert [unit.in_channels for unit in units] == [64] + [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 2
    assert [unit.stage for unit in units] == [0] * 3 + [1] * 4 + [2] * 6 + [3] * 3
    assert [index for index, unit in enumerate(units) if unit.projects] == [0, 3, 7, 13]


def test_basic_blocks_of_the_first_stage_need_no_projection() -> None:
    units = on_meta(18).units
    assert [unit.in_channels for unit in units] == [64, 64, 64, 128, 128, 256, 256, 512]
    assert [index for index, unit in enumerate(units) if unit.projects] == [2, 4, 6]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_counts_convolutions_of_blocks_stem_and_head(depth: int) -> None:
    names = [name for name, m in on_meta(depth).named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in names if "downsample" not in name]) == depth


def test_convolutions_are_initialised_by_fan_out_and_every_norm_with_one() -> None:
    torch.manual_seed(0)
    backbone = ImageNetResNet(ImageNetResNetConfig(depth=50))
    block = backbone.layer2[0]
    for weight, fan_out in (
        (backbone.conv1.weight, 64 * 49),
        (block.conv2.weight, 128 * 9),
        (block.conv3.weight, 512),
        (block.downsample[0].weight, 512),
    ):
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((norm.weight == 1).all()) and not norm.bias.any() for norm in norms)


@SMALL
@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_all_run_equals_the_static_network(
    depth: int, se_ratio: int | None, mix: Mix, training: bool
) -> None:
    # A copy, as training changes the statistics.
    backbone = copy.deepcopy(shared(depth, se_ratio, mix).backbone).train(training)
    router = ConstantRouter.keep([1.0] * len(backbone.units))
    with torch.no_grad():
        expected = backbone(images(4))
        actual = RoutedNetwork(backbone, router)(images(4)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mix", ["output", "branch"])
def test_none_run_is_the_chain_of_shortcuts_behind_relu(mix: Mix) -> None:
    backbone = shared(50, None, mix).backbone
    with torch.no_grad():
        x = backbone.stem(images(2))
        for unit in backbone.units:
            x = torch.relu(unit.shortcut(x))
        skipped = RoutedNetwork(backbone, ConstantRouter.keep([0.0] * 16))(images(2)).logits
        torch.testing.assert_close(skipped, backbone.head(x), rtol=1e-5, atol=1e-5)


@SMALL
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gathered_equals_masked_and_skipped_branches_do_not_run(
    depth: int, se_ratio: int | None, batch: int, mode: type
) -> None:
    network = shared(depth, se_ratio)
    generator = strategies.generator(batch)
    table = torch.randint(0, 2, (batch, len(network.backbone.units)), generator=generator)
    router = TableRouter(table)
    with mode():
        expected = network(images(batch), router=router)
        with branch_rows(network.backbone) as rows, CountedMacs() as counted:
            actual = network(images(batch), router=router, execution=gathered)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert rows == table.sum(dim=0).tolist()
    cost = cost_of_shared(depth, se_ratio)
    assert sum(counted.macs) == cost.per_sample(actual.decisions, routers=False).double().sum().item()


@cache
def cost_of_shared(depth: int, se_ratio: int | None) -> CostModel:
    return measure_cost(shared(depth, se_ratio), (SIZE, SIZE))


@SMALL
def test_a_prepared_network_has_no_norm_and_the_same_output(depth: int, se_ratio: int | None) -> None:
    network = shared(depth, se_ratio)
    prepared = prepare(network, images(2))
    with torch.inference_mode():
        expected = network(images(8))
        actual = prepared(images(8), execution=gathered)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in prepared.modules())
    assert len(expected.decisions.paths().unique(dim=0)) > 2
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mix", ["output", "branch"])
def test_soft_decisions_reach_every_parameter_in_training(mix: Mix) -> None:
    torch.manual_seed(0)
    backbone = ImageNetResNet(ImageNetResNetConfig(depth=50, num_classes=3, se_ratio=16, mix=mix))
    network = RoutedNetwork(backbone, relational_router(backbone, RelationalConfig(dim=4))).train()
    network(images(4), sampler=GumbelSoftmax(noise=noise())).logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert all(bool(decide.weight.grad.any()) for decide in network.router.decide)


@pytest.mark.parametrize("depth", [0, 20, 32, 51, 200])
def test_other_depths_are_refused_with_those_that_exist(depth: int) -> None:
    message = f"depth must be one of 10, 18, 34, 50, 101, 152 on ImageNet, got {depth}"
    with pytest.raises(RecipeError, match=message):
        ImageNetResNetConfig(depth=depth)


@pytest.mark.parametrize(("depth", "narrowest"), [(18, 64), (34, 64), (50, 256), (152, 256)])
def test_the_ratio_of_squeeze_and_excitation_is_bounded_by_the_narrowest_block(
    depth: int, narrowest: int
) -> None:
    ImageNetResNetConfig(depth=depth, se_ratio=narrowest)
    with pytest.raises(RecipeError, match=f"se_ratio must be from 1 to {narrowest}, .* got {narrowest + 1}"):
        ImageNetResNetConfig(depth=depth, se_ratio=narrowest + 1)
