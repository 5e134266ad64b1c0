"""Networks of timm as backbones: the same numbers, modules and prices as before, block by block."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sidestep.backbones.timm_units import WrappedNetwork
from sidestep.backbones.wrapping import wrap_network
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.layers.unit import Unit
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import GumbelSoftmax
from tests import strategies
from tests.doubles import TableRouter, enliven, entered_rows, lively_routed, noise

VIT = {"img_size": 32}
# Name, settings and number of residual blocks; images have 32 x 32 pixels.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": ({}, 8),
    "resnet50": ({}, 16),
    "resnext50_32x4d": ({}, 16),
    "seresnet50": ({}, 16),
    "wide_resnet50_2": ({}, 16),
    "convnext_tiny": ({}, 18),
    "convnext_atto": ({}, 12),
    "vit_tiny_patch16_224": (VIT, 12),
    "deit_tiny_patch16_224": (VIT, 12),
    "deit_tiny_distilled_patch16_224": (VIT, 12),
}
# One small network of every family; the last one pools with attention.
SMALL: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": VIT,
    "test_vit3": VIT,
}
small_networks = pytest.mark.parametrize("name", SMALL)


def lively(name: str, **settings: Any) -> nn.Module:
    """Return a network of timm in evaluation mode whose every block can be seen in the output."""
    network: nn.Module = timm.create_model(name, num_classes=5, **settings)
    enliven(network)
    for key, parameter in network.named_parameters():
        if key.endswith("gamma"):
            nn.init.uniform_(parameter, 0.2, 0.5)
    return network.eval()


def small(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return lively(name, **SMALL.get(name, VIT), **settings)


def routed(network: nn.Module) -> RoutedNetwork:
    """Return the wrapped network with relational routers that disagree about images."""
    return lively_routed(wrap_network(network), strategies.images(16, 0, size=32))


@cache
def shared(name: str) -> RoutedNetwork:
    """Return a routed small network that no test may change."""
    return routed(small(name))


def all_on(backbone: WrappedNetwork) -> ConstantRouter:
    return ConstantRouter.keep([1.0] * len(backbone.units))


def counted_macs(run: Any, images: Tensor) -> float:
    # Attention as the products that it is made of: up to torch 2.14 the counter does not know the CPU's own
    # kernel for it.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(images)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_with_all_units_on_outputs_and_macs_are_those_of_the_original(name: str) -> None:
    settings, num_units = NETWORKS[name]
    network, images = lively(name, **settings), strategies.images(2, 0, size=32)
    backbone = wrap_network(network)
    dynamic = RoutedNetwork(backbone, all_on(backbone))
    assert len(backbone.units) == num_units
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dynamic(images).logits, expected, rtol=1e-5, atol=1e-5)
    assert measure_cost(dynamic, (32, 32)).full == counted_macs(network, images[:1])


@small_networks
def test_training_equals_that_of_the_original_with_its_drop_path(name: str) -> None:
    results, images = [], strategies.images(4, 1, size=32)
    for wraps in (False, True):
        network = small(name, drop_path_rate=0.5)
        backbone = wrap_network(network)
        model = RoutedNetwork(backbone, all_on(backbone)) if wraps else network
        model.train()
        torch.manual_seed(3)
        output = model(images)
        logits = output.logits if wraps else output
        logits.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        results.append([logits.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for original, wrapped in zip(*results, strict=True):
        torch.testing.assert_close(wrapped, original, rtol=1e-4, atol=1e-5)


@small_networks
def test_drop_path_rests_in_evaluation(name: str) -> None:
    backbone = wrap_network(small(name, drop_path_rate=0.5)).train().eval()
    images = strategies.images(4, 1, size=32)
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone(images))


@small_networks
def test_units_know_their_channels_and_stages(name: str) -> None:
    backbone = wrap_network(small(name))
    with torch.no_grad():
        x = backbone.stem(strategies.images(2, 0, size=32))
        for unit in backbone.units:
            assert unit.in_channels == x.shape[-1 if x.dim() == 3 else 1]
            x = unit.execute(x)
    stages = [unit.stage for unit in backbone.units]
    assert stages == sorted(stages)
    assert set(stages) == ({0} if "vit" in name else {0, 1, 2, 3})


def test_a_skipped_block_returns_its_input_or_the_path_between_stages() -> None:
    for name in SMALL:
        backbone = wrap_network(small(name))
        with torch.no_grad():
            x = backbone.stem(strategies.images(2, 0, size=32))
            for unit in backbone.units:
                skipped = unit.skip(x)
                if unit.keeps_input:
                    assert skipped is x
                elif "resnet" in name:
                    torch.testing.assert_close(skipped, torch.relu(unit.block.downsample(x)))
                else:
                    torch.testing.assert_close(skipped, unit.entry(x))
                x = unit.execute(x)
                assert skipped.shape == x.shape


def test_every_block_that_keeps_its_shape_is_free_when_skipped() -> None:
    for name, kept in (("resnet18", 5), ("resnet50", 12), ("convnext_atto", 9), ("vit_tiny_patch16_224", 12)):
        with torch.device("meta"):
            backbone = wrap_network(timm.create_model(name))
        cost = measure_cost(RoutedNetwork(backbone), (224, 224))
        assert int((cost.options[:, 0] == 0).sum()) == kept
        assert sum(unit.keeps_input for unit in backbone.units) == kept
        assert bool((cost.options[:, 1] > cost.options[:, 0]).all())


@small_networks
def test_soft_weights_blend_the_outputs_of_both_options(name: str) -> None:
    backbone, weights = wrap_network(small(name)), torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.0, 1.0]])
    with torch.no_grad():
        x = backbone.stem(strategies.images(3, 0, size=32))
        for unit in backbone.units:
            torch.testing.assert_close(unit(x, weights), Unit.forward(unit, x, weights), rtol=1e-4, atol=1e-5)
            x = unit.execute(x)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_blending_scales_the_residual_where_nothing_follows_the_sum(name: str) -> None:
    backbone = wrap_network(small(name))
    unit = next(unit for unit in backbone.units if unit.keeps_input)
    x = torch.randn(2, 3, unit.in_channels) if "vit" in name else torch.randn(2, unit.in_channels, 4, 4)
    expected = x + 0.25 * (unit.block(x) - x)
    torch.testing.assert_close(unit(x, torch.tensor([[0.75, 0.25]]).expand(2, 2)), expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_what_both_options_share_runs_once_in_training(name: str) -> None:
    backbone, calls = wrap_network(small(name)).train(), []
    for unit in backbone.units:
        if not unit.keeps_input:
            path = unit.block.downsample if "resnet" in name else unit.entry
            path.register_forward_hook(lambda *call: calls.append(call[0]))
    half = ConstantRouter.keep([0.5] * len(backbone.units))
    sampler = GumbelSoftmax(noise=noise())
    RoutedNetwork(backbone, half)(strategies.images(4, 0, size=32), sampler=sampler)
    assert len(calls) == len(set(calls)) == sum(not unit.keeps_input for unit in backbone.units)


@small_networks
def test_a_routed_training_step_reaches_every_parameter(name: str) -> None:
    network = routed(small(name)).train()
    output = network(strategies.images(8, 0, size=32), sampler=GumbelSoftmax(noise=noise(), hard=True))
    output.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(decide.weight.grad.abs().sum() > 0 for decide in network.router.decide)


@pytest.mark.parametrize("inference", [False, True])
@small_networks
def test_gathered_equals_masked_and_runs_no_block_that_is_skipped(name: str, inference: bool) -> None:
    network, images = shared(name), strategies.images(6, 0, size=32)
    with torch.no_grad():
        expected = network(images)
    blocks = [unit.block for unit in network.backbone.units]
    with torch.inference_mode(inference), torch.no_grad(), entered_rows(blocks) as rows:
        actual = network(images, execution=gathered)
    assert len(expected.decisions.paths().unique(dim=0)) > 1
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert rows == expected.decisions.execution().sum(dim=0).tolist()


@small_networks
def test_the_price_of_a_path_is_what_a_gathered_pass_counts(name: str) -> None:
    network, images = shared(name), strategies.images(1, 0, size=32)
    cost, units = measure_cost(network, (32, 32)), len(network.backbone.units)
    frozen = copy.deepcopy(network).requires_grad_(False)
    for seed in range(3):
        table = torch.randint(0, 2, (1, units), generator=strategies.generator(seed))
        decisions = network(images, router=TableRouter(table)).decisions

        def run(images: Tensor, table: Tensor = table) -> None:
            frozen(images, router=TableRouter(table), execution=gathered)

        assert counted_macs(run, images) == cost.per_sample(decisions, routers=False).item()


@small_networks
def test_a_prepared_copy_computes_the_same_without_batch_norm(name: str) -> None:
    network, images = shared(name), strategies.images(4, 0, size=32)
    prepared = prepare(network, images)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in prepared.modules())
    with torch.inference_mode():
        expected, actual = network(images), prepared(images, execution=gathered)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_a_batch_norm_of_timm_that_activates_stays() -> None:
    network = small("test_resnet")
    network.bn1, network.act1 = BatchNormAct2d(network.bn1.num_features).eval(), nn.Identity()
    dynamic, images = routed(network), strategies.images(4, 0, size=32)
    prepared = prepare(dynamic, images)
    assert [type(m) for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)] == [BatchNormAct2d]
    with torch.inference_mode():
        torch.testing.assert_close(prepared(images).logits, dynamic(images).logits, rtol=1e-5, atol=1e-5)


@small_networks
def test_weights_are_shared_under_timms_names(name: str) -> None:
    network = small(name)
    backbone = wrap_network(network)
    assert backbone.origin is network
    assert list(backbone.state_dict()) == [f"network.{key}" for key in network.state_dict()]
    assert [id(p) for p in backbone.parameters()] == [id(p) for p in network.parameters()]
    own = {id(p) for p in backbone.parameters()}
    assert all(id(p) in own for unit in backbone.units for p in unit.parameters())


@small_networks
def test_a_copy_runs_on_its_own_blocks(name: str) -> None:
    backbone, images = wrap_network(small(name)), strategies.images(2, 0, size=32)
    twin = copy.deepcopy(backbone)
    modules = set(twin.network.modules())
    assert all(unit.block in modules for unit in twin.units)
    with torch.no_grad():
        expected = backbone(images)
        for parameter in backbone.parameters():
            parameter.zero_()
        assert torch.equal(twin(images), expected)


@small_networks
def test_modes_follow_the_network(name: str) -> None:
    network = small(name)
    blocks = [unit.block for unit in wrap_network(network).units]
    blocks[0].train()
    backbone = wrap_network(network)
    assert not backbone.training
    assert [unit.training for unit in backbone.units] == [True] + [False] * (len(blocks) - 1)
    assert all(unit.training and unit.block.training for unit in backbone.train().units)
    assert not any(unit.training or unit.block.training for unit in backbone.eval().units)


def test_attention_and_mlp_can_be_units_of_their_own() -> None:
    network, images = small("test_vit2", drop_path_rate=0.2), strategies.images(4, 0, size=32)
    blocks, halves = wrap_network(network), wrap_network(network, "sublayers")
    whole, parts = (measure_cost(RoutedNetwork(b), (32, 32)).options for b in (blocks, halves))
    assert len(halves.units) == 2 * len(blocks.units)
    torch.testing.assert_close(parts.view(-1, 2, 2).sum(dim=1), whole)
    attention, mlp = halves.units[:2]
    with torch.no_grad():
        x, block = halves.stem(images), network.blocks[0]
        assert attention.skip(x) is x
        torch.testing.assert_close(attention.execute(x), x + block.ls1(block.attn(block.norm1(x))))
        torch.testing.assert_close(mlp.execute(x), x + block.ls2(block.mlp(block.norm2(x))))
        outputs = []
        for model in (network.train(), halves.train()):
            torch.manual_seed(3)
            outputs.append(model(images))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["test_convnext", "vit_pwee_patch16_reg1_gap_256"])
def test_networks_without_two_sublayers_per_block_say_so(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    kind = type(network).__name__
    with pytest.raises(RecipeError, match=f"units must be 'blocks' .* got 'sublayers' for a {kind}; drop"):
        wrap_network(network, "sublayers")


def test_an_unknown_kind_of_unit_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"units must be one of blocks, sublayers, or a .* got 'layers'; for"
    ):
        wrap_network(small("test_vit"), "layers")  # type: ignore[arg-type]
