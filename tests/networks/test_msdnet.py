from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.networks.msdnet import MsdNet, MsdNetConfig
from tests import strategies
from tests.doubles import EXIT_NETWORKS, lively_exits, shared_exit_network
from tests.marks import slow_where
from tests.reference.macs import CountedMacs, CountedOperations, in_millions
from tests.reference.multi_scale import live_scales, msdnet

IMAGENET: dict[str, Any] = dict(
    num_scales=4, blocks=5, channels=32, growth=16, gr_factor=(1, 2, 4, 4), bn_factor=(1, 2, 4, 4),
    stem="imagenet", num_classes=1000,
)  # fmt: skip
BUDGET: dict[str, Any] = dict(base=1, step=1, stepmode="lin_grow")

# Settings; operations of every exit in millions, all scales of a layer computed at once, as published; those
# of the first exit with nothing computed that it does not need; parameters in millions.
PUBLISHED: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "cifar10_anytime": (
        {}, "15.1 25.5 37.8 52.0 62.1 74.0 87.7 100.0 110.0 121.6", 13_380_874, "4.84"
    ),
    "cifar100_anytime": (
        dict(blocks=7, num_classes=100), "15.1 25.5 37.1 46.3 57.3 67.0 75.9", 13_392_484, "3.07"
    ),
    "cifar10_budget": (
        dict(blocks=7, **BUDGET), "6.9 14.3 27.3 48.4 76.4 108.8 137.2", 5_948_170, "3.89"
    ),
    "cifar100_budget": (
        dict(blocks=5, num_classes=100, **BUDGET), "6.9 14.4 27.5 41.7 58.5", 5_959_780, "2.08"
    ),
    "imagenet_4": (
        dict(base=4, step=4, **IMAGENET), "340 685 1008 1254 1361", 255_820_392, "24.0"
    ),
    # The published figure has its first exit at 0.50e9: it is lazy too.
    "imagenet_7": (
        dict(base=7, step=7, **IMAGENET), "616 1436 2283 2967 3254", 505_117_608, "62.3"
    ),
}  # fmt: skip


def on_meta(**settings: Any) -> MsdNet:
    with torch.device("meta"):
        return MsdNet(MsdNetConfig(**settings)).eval()


def meta_images(network: MsdNet) -> Tensor:
    size = 32 if network.config.stem == "cifar" else 224
    return torch.empty(1, 3, size, size, device="meta")


@pytest.mark.parametrize("name", slow_where(lambda name: name.startswith("imagenet"), PUBLISHED))
def test_operations_and_parameters_are_those_of_the_specification_digit_for_digit(name: str) -> None:
    settings, at_once, first, parameters = PUBLISHED[name]
    network = on_meta(**settings)
    state, images = network.state_dict(), meta_images(network)
    with torch.no_grad(), CountedOperations() as literal:
        msdnet(state, network.config, images, lazy=False)
    assert in_millions(literal.exits, at_once) == at_once
    assert in_millions([sum(p.numel() for p in network.parameters())], parameters) == parameters
    with torch.no_grad(), CountedOperations() as counted:
        network(images)
    assert counted.exits[0] == first < literal.exits[0]
    assert counted.exits[-1] == literal.exits[-1]
    with torch.no_grad(), CountedOperations() as backwards:
        msdnet(state, network.config, images, lazy=True)
    assert counted.exits == backwards.exits


def test_prices_are_the_multiply_adds_alone() -> None:
    network = on_meta()
    with torch.no_grad(), CountedMacs() as literal:
        msdnet(network.state_dict(), network.config, meta_images(network), lazy=True)
    assert measure_cost(network, (32, 32)).full == sum(literal.macs)


@st.composite
def configs(draw: st.DrawFn) -> MsdNetConfig:
    num_scales = draw(st.integers(1, 4))
    factors = st.lists(st.integers(1, 3), min_size=num_scales, max_size=num_scales).map(tuple)
    return MsdNetConfig(
        num_scales=num_scales,
        blocks=draw(st.integers(1, 4)),
        base=draw(st.integers(1, 4)),
        step=draw(st.integers(1, 3)),
        stepmode=draw(st.sampled_from(["even", "lin_grow"])),
        prune=draw(st.sampled_from(["max", "min"])),
        channels=2,
        growth=draw(st.integers(2, 4)),
        gr_factor=draw(factors),
        bn_factor=draw(st.none() | factors),
        reduction=draw(st.sampled_from([0.4, 0.5, 1.0])),
        num_classes=3,
    )


@given(configs())
def test_any_network_equals_the_literal_one_and_does_the_same_work(config: MsdNetConfig) -> None:
    # A coarsest scale of 8x8, of which exits leave 2x2.
    images = strategies.images(4, 0, size=8 * 2 ** (config.num_scales - 1))
    network = lively_exits(MsdNet(config), images)
    with torch.no_grad():
        with CountedOperations() as counted:
            actual = network(images).exit_logits
        with CountedOperations() as literal:
            expected = msdnet(network.state_dict(), config, images, lazy=True)
    torch.testing.assert_close(list(actual), expected, rtol=1e-4, atol=1e-4)
    assert counted.exits == literal.exits


@pytest.mark.parametrize("name", ["cifar10_anytime", "cifar100_budget"])
def test_computing_all_scales_at_once_changes_no_logits(name: str) -> None:
    images = strategies.images(2, 0, size=32)
    network = lively_exits(MsdNet(MsdNetConfig(**PUBLISHED[name][0])), images)
    with torch.no_grad():
        expected = msdnet(network.state_dict(), network.config, images, lazy=False)
        actual = network(images).exit_logits
    torch.testing.assert_close(list(actual), expected, rtol=1e-4, atol=1e-4)


def test_the_imagenet_network_equals_the_literal_one() -> None:
    config = MsdNetConfig(blocks=2, base=2, step=1, channels=4, growth=4, stem="imagenet", num_classes=7)
    images = strategies.images(2, 0, size=128)
    network = lively_exits(MsdNet(config), images)
    assert network.heads[0].conv1[0].out_channels == network.heads[0].conv1[0].in_channels
    with torch.no_grad():
        expected = msdnet(network.state_dict(), config, images, lazy=True)
        torch.testing.assert_close(list(network(images).exit_logits), expected, rtol=1e-4, atol=1e-4)


def test_steps_of_blocks_are_even_or_grow() -> None:
    assert MsdNetConfig().exit_layers == (4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
    assert MsdNetConfig(blocks=7, **BUDGET).exit_layers == tuple(accumulate(range(1, 8)))
    assert MsdNetConfig(blocks=3, base=2, step=2, stepmode="lin_grow").exit_layers == (2, 5, 10)


def test_scales_end_by_equal_parts_or_as_late_as_they_are_needed() -> None:
    assert MsdNetConfig().last_layers == (8, 16, 22)
    assert MsdNetConfig(prune="min").last_layers == (20, 21, 22)
    assert MsdNetConfig().transition_layers == {9, 17}
    assert MsdNetConfig(prune="min").transition_layers == {7, 14}
    # Scale 2 of 3 leaves the last layer too in the released code, where no exit reads it.
    short = MsdNetConfig(blocks=1, base=4)
    assert live_scales(short, 4) == 2 and short.last_layers == (2, 3, 4)


def test_the_state_is_one_tensor_per_scale_that_is_read_again() -> None:
    network = on_meta()
    state = network.begin(meta_images(network))
    shapes = [[(x.shape[1], x.shape[3]) for x in state]]
    for index in range(network.num_exits):
        state = network.advance(index, state)
        shapes.append([(x.shape[1], x.shape[3]) for x in state])
    assert shapes[0] == [(16, 32), (32, 16), (64, 8)]
    assert shapes[1] == [(16 + 2 * 6, 32), (2 * (16 + 3 * 6), 16), (4 * (16 + 4 * 6), 8)]
    assert [len(scales) for scales in shapes] == [3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("name", ["msdnet", "msdnet_min", "msdnet_short"])
def test_work_for_later_exits_is_not_done_at_the_first(name: str) -> None:
    network, called = shared_exit_network(name), set()
    handles = [
        layer.register_forward_hook(lambda module, *_: called.add(module))
        for layers in network.scales
        for layer in layers
    ]
    with torch.no_grad():
        network.advance(0, network.begin(strategies.images(1, 0, size=16)))
    for handle in handles:
        handle.remove()
    base, coarsest = EXIT_NETWORKS[name].base, EXIT_NETWORKS[name].num_scales - 1
    done = [sum(layer in called for layer in layers) for layers in network.scales]
    assert done == [max(0, base - (coarsest - scale)) for scale in range(coarsest + 1)]


def test_all_convolutions_are_initialised_by_fan_out() -> None:
    for module in MsdNet(MsdNetConfig(channels=64, blocks=1)).first.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_scales": 0}, "num_scales must be at least 1, got 0; raise it"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"base": 0}, "base must be at least 1, got 0"),
        ({"step": 0}, "step must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"growth": 0}, "growth must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"stepmode": "lg"}, "stepmode must be one of even, lin_grow, got 'lg'; choose one of those"),
        ({"prune": "mean"}, "prune must be one of max, min, got 'mean'"),
        ({"stem": "svhn"}, "stem must be one of cifar, imagenet, got 'svhn'"),
        (
            {"num_scales": 4},
            r"gr_factor must have 4 entries .* each of the 4 scales, got \[1, 2, 4\]; make both equally long",
        ),
        ({"bn_factor": (1, 2)}, r"bn_factor must have 3 entries of at least 1, .* got \[1, 2\]"),
        ({"growth": 1, "gr_factor": (1, 1, 2)}, r"growth times gr_factor .* got 1 times \[1, 1, 2\]; raise"),
        ({"reduction": 0.1}, "reduction must .* one of 7 channels .* got 0.1; the papers use 0.5"),
        ({"reduction": 1.1}, "reduction must be at most 1 .* got 1.1"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MsdNetConfig(**settings)
