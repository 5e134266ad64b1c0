from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sidestep.backbones.backbone import Backbone
from sidestep.execution.execution import gathered
from sidestep.execution.prepare import cast, prepare
from sidestep.layers.residual import Mix
from sidestep.layers.shortcut import Shortcut
from sidestep.layers.unit import Unit
from sidestep.networks.routed import RoutedNetwork
from tests import strategies
from tests.doubles import enliven, lively_backbone, lively_network


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize("mix", ["output", "branch"])
@pytest.mark.parametrize("shortcut", ["A", "B", "pool_end", "pool_both"])
def test_a_prepared_network_computes_the_same_without_batch_norm(shortcut: Shortcut, mix: Mix) -> None:
    network, images = lively_network(14, shortcut, mix), strategies.images(4, 0)
    prepared = prepare(network, images[:1])
    expected, actual = network(images), prepared(images)
    assert norms(network)
    assert not norms(prepared)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.decisions.logits, expected.decisions.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)


def test_what_is_folded_away_leaves_no_module_behind() -> None:
    prepared = prepare(lively_network(8, "B"), strategies.images(2, 0))
    router, unit = prepared.router, prepared.backbone.units[1]
    assert all(type(align) is nn.Linear for align in router.align)  # type: ignore[union-attr]
    assert type(unit.downsample) is nn.Conv2d


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_static_network_is_prepared_too(shortcut: Shortcut) -> None:
    network, images = RoutedNetwork(lively_backbone(8, shortcut)), strategies.images(3, 0)
    prepared = prepare(network, images)
    assert not norms(prepared)
    torch.testing.assert_close(prepared(images).logits, network(images).logits, rtol=1e-5, atol=1e-5)


def test_units_that_the_router_skips_are_prepared_as_well() -> None:
    network, images = lively_network(8), strategies.images(2, 0)
    for decide in network.router.decide:  # type: ignore[union-attr]
        nn.init.zeros_(decide.weight)
        decide.bias.data = torch.tensor([1.0, 0.0])
    assert not network(images).decisions.paths().any()
    prepared = prepare(network, images)
    assert not norms(prepared)
    torch.testing.assert_close(prepared.backbone(images), network.backbone(images), rtol=1e-5, atol=1e-5)


def test_the_copy_is_frozen_in_evaluation_mode_and_in_channels_last() -> None:
    prepared = prepare(lively_network(8).train(), strategies.images(2, 0))
    assert not any(p.requires_grad for p in prepared.parameters())
    assert not any(m.training for m in prepared.modules())
    convolutions = [m for m in prepared.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in prepared.modules())


def test_the_network_is_left_as_it_was() -> None:
    network = lively_network(8).train()
    before = copy.deepcopy(network.state_dict())
    prepare(network, strategies.images(2, 0))
    after = network.state_dict()
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_prepared_network_runs_gathered_in_inference_mode(batch: int) -> None:
    network, images = lively_network(14, "B"), strategies.images(batch, 0)
    prepared = prepare(network, images)
    expected = network(images)
    with torch.inference_mode():
        actual = prepared(images, execution=gathered)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)


class ActivatingNorm(nn.BatchNorm2d):
    """A BatchNorm that does more than its base class, like those of timm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Stem(Backbone):
    """A convolution, a BatchNorm, and a head; subclasses say how the first two meet."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = norm

    @property
    def units(self) -> list[Unit]:
        return []

    def head(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class Plain(Stem):
    def stem(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


class ReadTwice(Stem):
    """A pre-activation network adds what it also normalises."""

    def stem(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        return x + self.norm(x)


class RunTwice(Stem):
    def stem(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)) + self.conv(-images)


class Apart(Stem):
    def stem(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images) + 1)


@pytest.mark.parametrize(
    ("backbone", "folds"),
    [
        (Plain(nn.BatchNorm2d(4)), True),
        (Plain(nn.BatchNorm2d(4, affine=False)), True),
        (Plain(nn.BatchNorm2d(4, track_running_stats=False)), False),
        (Plain(ActivatingNorm(4)), False),
        (ReadTwice(nn.BatchNorm2d(4)), False),
        (RunTwice(nn.BatchNorm2d(4)), False),
        (Apart(nn.BatchNorm2d(4)), False),
    ],
    ids=["plain", "no weights", "no statistics", "subclass", "read twice", "run twice", "apart"],
)
def test_batch_norm_is_folded_only_where_that_changes_nothing(backbone: Stem, folds: bool) -> None:
    norm = backbone.norm
    if norm.affine and norm.track_running_stats:
        enliven(backbone)
    network, images = RoutedNetwork(backbone).eval(), strategies.images(4, 0)
    prepared = prepare(network, images)
    assert bool(norms(prepared)) is not folds
    torch.testing.assert_close(prepared.backbone(images), network.backbone(images), rtol=1e-5, atol=1e-5)


def test_a_linear_layer_over_sequences_keeps_its_batch_norm() -> None:
    class Sequence(Plain):
        def __init__(self) -> None:
            super().__init__(nn.BatchNorm1d(4))
            self.conv = nn.Linear(4, 4)  # type: ignore[assignment]

        def stem(self, images: Tensor) -> Tensor:
            return super().stem(images.mean(dim=1)[:, :4, :4]).unsqueeze(1)

    backbone = Sequence()
    enliven(backbone)
    network, images = RoutedNetwork(backbone).eval(), strategies.images(4, 0)
    prepared = prepare(network, images)
    assert norms(prepared)
    torch.testing.assert_close(prepared.backbone(images), network.backbone(images), rtol=1e-5, atol=1e-5)


def test_a_cast_network_decides_in_exact_one_hot_rows() -> None:
    network, images = prepare(lively_network(8), strategies.images(1, 0)), strategies.images(4, 0)
    low = cast(network, "bfloat16")
    with torch.inference_mode():
        expected = network.backbone(images)
        output = low(images.bfloat16(), execution=gathered)
        static = low.backbone(images.bfloat16())
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert output.decisions.weights.unique().tolist() == [0, 1]
    assert torch.equal(output.decisions.weights.sum(dim=2).float(), torch.ones(4, 3))
    torch.testing.assert_close(static.float(), expected, rtol=0.1, atol=0.1)
