from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.execution.execution import blend, masked
from sidestep.fused.blocks import cheap_mean, run_by_hand
from sidestep.fused.training_execution import by_hand
from sidestep.layers.pool import averaging_by
from sidestep.layers.residual import Mix
from sidestep.layers.shortcut import Shortcut
from sidestep.layers.unit import Unit
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import ConstantRouter
from sidestep.routing.samplers import Categorical, GumbelSoftmax, argmax
from tests import strategies
from tests.doubles import TableRouter, lively_backbone, lively_network, noise, shared_network

SHORTCUTS = ["A", "B", "pool_end", "pool_both"]


def test_without_a_router_everything_is_executed() -> None:
    backbone, images = lively_backbone(8), strategies.images(3, 0)
    output = RoutedNetwork(backbone)(images)
    assert torch.equal(output.logits, backbone(images))
    assert torch.equal(output.decisions.execution(), torch.ones(3, 3))
    assert output.decisions.logits is None
    assert output.exit_logits is None


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_all_run_equals_the_static_network_in_value_gradient_and_statistics(
    shortcut: Shortcut, mix: Mix, training: bool
) -> None:
    results = []
    for router in (None, ConstantRouter.keep([1.0] * 6)):
        torch.manual_seed(0)
        backbone = lively_backbone(14, shortcut, mix).train(training)
        logits = RoutedNetwork(backbone, router)(strategies.images(4, 1)).logits
        logits.square().sum().backward()
        gradients = [p.grad for p in backbone.parameters()]
        results.append([logits.detach(), *gradients, *backbone.buffers()])
    for static, routed in zip(*results, strict=True):
        torch.testing.assert_close(routed, static, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_none_run_is_the_chain_of_shortcuts(shortcut: Shortcut, mix: Mix) -> None:
    backbone, images = lively_backbone(8, shortcut, mix), strategies.images(2, 0)
    x = backbone.stem(images)
    for unit in backbone.units:
        x = torch.relu(unit.shortcut(x))
    output = RoutedNetwork(backbone, ConstantRouter.keep([0.0] * 3))(images)
    torch.testing.assert_close(output.logits, backbone.head(x))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_both_mixes_agree_for_hard_decisions_and_differ_for_soft(shortcut: Shortcut) -> None:
    network, images = lively_network(8, shortcut), strategies.images(3, 0)
    outputs = {}
    for mix in ("output", "branch"):
        for unit in network.backbone.units:
            unit.mix = mix
        outputs[mix] = [
            network(images, sampler=GumbelSoftmax(noise=noise(), hard=hard)).logits for hard in (True, False)
        ]
    torch.testing.assert_close(outputs["output"][0], outputs["branch"][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["output"][1], outputs["branch"][1], atol=1e-3)


@given(strategies.depths, strategies.shortcuts, strategies.seeds)
def test_permuting_a_batch_permutes_outputs_and_decisions(depth: int, shortcut: Shortcut, seed: int) -> None:
    network, images = shared_network(depth, shortcut), strategies.images(5, seed)
    order = torch.randperm(5, generator=strategies.generator(seed))
    with torch.no_grad():
        output, permuted = network(images), network(images[order])
    torch.testing.assert_close(permuted.logits, output.logits[order], rtol=1e-4, atol=1e-5)
    assert torch.equal(permuted.decisions.weights, output.decisions.weights[order])


@given(strategies.seeds)
def test_an_image_alone_is_treated_as_in_its_batch(seed: int) -> None:
    network, images = shared_network(), strategies.images(4, seed)
    with torch.no_grad():
        together = network(images)
        alone = [network(image.unsqueeze(0)) for image in images]
    logits = torch.cat([output.logits for output in alone])
    torch.testing.assert_close(logits, together.logits, rtol=1e-4, atol=1e-5)
    weights = torch.cat([output.decisions.weights for output in alone])
    assert torch.equal(weights, together.decisions.weights)


def test_lively_routers_send_images_on_several_paths() -> None:
    decisions = shared_network(14)(strategies.images(64, 0)).decisions
    assert len(decisions.paths().unique(dim=0)) > 10
    assert bool(((decisions.keep_rates() > 0.1) & (decisions.keep_rates() < 0.9)).all())


def test_evaluation_is_deterministic_and_hard() -> None:
    network, images = shared_network(), strategies.images(4, 0)
    first, second = network(images), network(images)
    assert torch.equal(first.logits, second.logits)
    assert set(first.decisions.weights.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(first.decisions.weights, first.decisions.relaxed)


def test_decisions_hold_weights_logits_and_relaxed_weights_of_every_unit() -> None:
    network, images = shared_network(14), strategies.images(4, 0)
    decisions = network(images, sampler=GumbelSoftmax(noise=noise(), hard=True)).decisions
    for tensor in (decisions.weights, decisions.logits, decisions.relaxed):
        assert tensor.shape == (4, 6, 2)
    assert torch.equal(decisions.paths(), decisions.relaxed.argmax(dim=2))
    assert set(decisions.weights.unique().tolist()) == {0.0, 1.0}
    assert bool(((decisions.relaxed > 0) & (decisions.relaxed < 1)).all())


def test_logits_are_those_before_any_noise() -> None:
    network, images = shared_network(), strategies.images(4, 0)
    noisy = network(images, sampler=GumbelSoftmax(noise=noise())).decisions.logits[:, 0]
    assert torch.equal(noisy, network(images).decisions.logits[:, 0])


def test_a_router_that_is_passed_in_is_asked_instead_of_the_own_one() -> None:
    network, images = shared_network(), strategies.images(3, 0)
    table = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    decisions = network(images, router=TableRouter(table)).decisions
    assert torch.equal(decisions.execution(), table.float())


def test_uniform_sampling_leaves_the_own_routers_without_gradient() -> None:
    network = lively_network().train()
    output = network(
        strategies.images(4, 0), router=ConstantRouter.keep([0.5] * 3), sampler=Categorical(noise=noise())
    )
    output.logits.sum().backward()
    assert all(p.grad is None for p in network.router.parameters())
    assert all(p.grad is not None for p in network.backbone.parameters())


def test_every_unit_is_run_by_the_execution_that_is_passed_in() -> None:
    network, seen = shared_network(), []

    def recording(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        seen.append(unit)
        return blend(unit, x, weights)

    network(strategies.images(2, 0), execution=replace(masked, run=recording))
    assert seen == list(network.backbone.units)


@pytest.mark.parametrize("hard", [False, True])
def test_a_training_step_reaches_every_parameter(hard: bool) -> None:
    network = lively_network(8).train()
    output = network(strategies.images(8, 0), sampler=GumbelSoftmax(noise=noise(), hard=hard))
    output.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(decide.weight.grad.abs().sum() > 0 for decide in network.router.decide)


@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_training_keeps_channels_last_through_forward_and_backward(
    batch: int, shortcut: Shortcut, mix: Mix
) -> None:
    network = lively_network(14, shortcut, mix).to(memory_format=torch.channels_last)
    network.backbone.train(batch > 1)
    kept: list[bool] = []

    def check(tensor: Tensor) -> None:
        kept.append(tensor.is_contiguous(memory_format=torch.channels_last))

    def recording(unit: Unit, x: Tensor, weights: Tensor) -> Tensor:
        check(x)
        x.register_hook(check)
        out = run_by_hand(unit, x, weights)
        check(out)
        return out

    images = strategies.images(batch, 0, size=16).to(memory_format=torch.channels_last)
    with averaging_by(cheap_mean):
        output = network(
            images, sampler=GumbelSoftmax(noise=noise()), execution=replace(by_hand, run=recording)
        )
    output.logits.square().sum().backward()
    assert len(kept) == 3 * len(network.backbone.units)
    assert all(kept)


def test_the_output_is_the_same_in_either_memory_format() -> None:
    network, images = shared_network(14), strategies.images(3, 0)
    last = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last.logits, network(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router", [None, ConstantRouter.keep([1.0] * 3)])
def test_autocast_keeps_decisions_in_full_precision_where_a_sampler_has_noise(router: Any) -> None:
    network = RoutedNetwork(CifarResNet(CifarResNetConfig(depth=8)), router)
    sampler = argmax if router is None else GumbelSoftmax(noise=noise())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(strategies.images(2, 0), sampler=sampler)
    assert output.logits.dtype == torch.bfloat16
    assert output.decisions.weights.dtype == torch.float32
