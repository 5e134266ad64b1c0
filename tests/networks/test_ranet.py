from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.networks.ranet import RaNet, RaNetConfig
from tests import strategies
from tests.doubles import EXIT_NETWORKS, lively_exits, shared_exit_network
from tests.marks import slow_where
from tests.reference.macs import CountedMacs, CountedOperations, in_millions
from tests.reference.multi_scale import ranet

IMAGENET: dict[str, Any] = dict(scale_list=(1, 2, 3, 4), step=8, growth=16, stem="imagenet", num_classes=1000)
FIGURE: dict[str, Any] = dict(scale_list=(1, 2, 3, 3), gr_factor=(4, 2, 1, 1), bn_factor=(4, 2, 1, 1))
WIDE: dict[str, Any] = dict(gr_factor=(4, 2, 2, 1), bn_factor=(4, 2, 2, 1), **IMAGENET)

# Settings, operations of every exit in millions, parameters in millions.
PUBLISHED: dict[str, tuple[dict[str, Any], str, str]] = {
    "cifar10_figure": (FIGURE, "15.8 31.3 44.7 50.4 60.7 63.7 90.2 94.9", "3.26"),
    "cifar10_readme": (dict(step=2, stepmode="lg"), "8.4 21.8 32.8 41.5 53.2 58.9", "2.55"),
    "cifar10_defaults": ({}, "13.4 28.9 42.3 48.0 58.3 61.3", "2.45"),
    "imagenet_figure": (dict(channels=64, **WIDE), "435 889 1153 1352 2280 2588 3236 3333", "149"),
    "imagenet_readme": (dict(channels=32, **WIDE), "246 631 860 1041 1870 2160 2734 2828", "131"),
    "imagenet_script": (
        dict(gr_factor=(4, 2, 1, 1), bn_factor=(4, 2, 1, 1), **IMAGENET),
        "168 520 732 904 1052 1119 1589 1681",
        "88",
    ),
}


def on_meta(**settings: Any) -> RaNet:
    with torch.device("meta"):
        return RaNet(RaNetConfig(**settings)).eval()


def meta_images(network: RaNet) -> Tensor:
    size = 32 if network.config.stem == "cifar" else 224
    return torch.empty(1, 3, size, size, device="meta")


@cache
def literal_operations(**settings: Any) -> list[int]:
    """Return the operations up to every exit of the literal network."""
    network = on_meta(**settings)
    with torch.no_grad(), CountedOperations() as counted:
        ranet(network.state_dict(), network.config, meta_images(network))
    return counted.exits


@pytest.mark.parametrize("name", slow_where(lambda name: name.startswith("imagenet"), PUBLISHED))
def test_operations_and_parameters_are_those_of_the_specification_digit_for_digit(name: str) -> None:
    settings, operations, parameters = PUBLISHED[name]
    network, literal = on_meta(**settings), literal_operations(**settings)
    assert in_millions(literal, operations) == operations
    assert in_millions([sum(p.numel() for p in network.parameters())], parameters) == parameters
    # All that an exit needs and no more: counted in the network itself it is the same to the last digit.
    with torch.no_grad(), CountedOperations() as counted:
        network(meta_images(network))
    assert counted.exits == literal


def test_a_hundred_classes_cost_the_little_that_the_specification_says() -> None:
    few, many = literal_operations(**FIGURE), literal_operations(num_classes=100, **FIGURE)
    more = [b - a for a, b in zip(few, many, strict=True)]
    assert more == [90 * (128 + 1) * exits for exits in range(1, 9)]
    assert in_millions(more[:1], "0.01") == "0.01" and in_millions(more[-1:], "0.1") == "0.1"


def test_prices_are_the_multiply_adds_alone() -> None:
    network = on_meta(**FIGURE)
    with torch.no_grad(), CountedMacs() as literal:
        ranet(network.state_dict(), network.config, meta_images(network))
    assert measure_cost(network, (32, 32)).full == sum(literal.macs)


def test_channels_and_maps_are_those_of_the_checked_table() -> None:
    network = on_meta(**FIGURE)
    seen: dict[nn.Module, tuple[int, ...]] = {}
    for blocks in network.networks:
        for block in blocks:
            block.register_forward_hook(
                lambda module, inputs, output: seen.update(
                    {module: (inputs[0].shape[1], *output[0].shape[1::2])}
                )
            )
    network(meta_images(network))
    assert [[seen[block] for block in blocks] for blocks in network.networks] == [
        [(64, 160, 8), (160, 256, 8)],
        [(32, 100, 16), (100, 92, 8), (92, 140, 8), (140, 188, 8)],
        [(16, 50, 32), (50, 46, 16), (46, 87, 16), (87, 69, 8), (69, 93, 8), (93, 117, 8)],
        [
            *[(16, 50, 32), (50, 46, 32), (46, 87, 32), (87, 138, 16)],
            *[(138, 101, 16), (101, 156, 8), (156, 180, 8), (180, 204, 8)],
        ],
    ]


@pytest.mark.parametrize("name", ["ranet", "ranet_lg"])
def test_the_network_equals_the_literal_one(name: str) -> None:
    network = shared_exit_network(name)
    # Lowest resolutions of 8x8, of which exits leave 2x2.
    images = strategies.images(2, 0, size=8 * 2 ** (max(EXIT_NETWORKS[name].scale_list) - 1))
    with torch.no_grad():
        expected = ranet(network.state_dict(), network.config, images)
        torch.testing.assert_close(list(network(images).exit_logits), expected, rtol=1e-4, atol=1e-5)


def test_the_imagenet_network_equals_the_literal_one() -> None:
    config = RaNetConfig(
        scale_list=(1, 2), step=2, growth=4, channels=4, gr_factor=(2, 1), bn_factor=(2, 1),
        stem="imagenet", num_classes=7,
    )  # fmt: skip
    images = strategies.images(2, 0, size=64)
    network = lively_exits(RaNet(config), strategies.images(8, 1, size=64))
    assert network.heads[0].conv1[0].out_channels == network.heads[0].conv1[0].in_channels
    with torch.no_grad():
        expected = ranet(network.state_dict(), config, images)
        torch.testing.assert_close(list(network(images).exit_logits), expected, rtol=1e-4, atol=1e-5)


def test_one_sub_network_is_a_dense_network_with_exits() -> None:
    network = RaNet(RaNetConfig(scale_list=(1,), gr_factor=(1,), bn_factor=(1,), blocks=3)).eval()
    assert network.num_exits == 3
    state = network.begin(strategies.images(2, 0))
    for index in range(3):
        state = network.advance(index, state)
    # No sub-network comes behind it, and so nothing is kept for one.
    assert state.inputs == state.features == ()
    assert state.x.shape[1] == 16 + 3 * 4 * 6


def test_features_are_kept_for_the_next_sub_network_only() -> None:
    network = on_meta(**FIGURE)
    state = network.begin(meta_images(network))
    lengths = []
    for index in range(network.num_exits):
        state = network.advance(index, state)
        lengths.append((len(state.inputs), len(state.features)))
    assert lengths == [(3, 1), (3, 2), (2, 3), (2, 4), (1, 5), (1, 6), (0, 0), (0, 0)]


def test_the_first_layer_keeps_the_defaults_of_torch() -> None:
    first = RaNet(RaNetConfig()).first
    for module in first.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * 9
            assert module.weight.abs().max().item() <= fan_in**-0.5
            assert module.weight.abs().max().item() > 0.9 * fan_in**-0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_list": ()}, r"scale_list must begin with 1, .* got \[\]; try 1, 2, 3"),
        ({"scale_list": (2, 3, 4)}, r"scale_list must begin with 1, .* got \[2, 3, 4\]"),
        ({"scale_list": (1, 3, 4)}, r"scale_list must .* or be one more, got \[1, 3, 4\]"),
        ({"scale_list": (1, 2, 1)}, r"scale_list must .* got \[1, 2, 1\]"),
        ({"blocks": 0}, "blocks must be at least 1, got 0; raise it"),
        ({"block_step": 0}, "block_step must be at least 1, got 0"),
        ({"step": 1}, "step must be at least 2, got 1; the paper uses 2, 4 and 8"),
        ({"stepmode": "lin_grow"}, "stepmode must be one of even, lg, got 'lin_grow'; choose one of those"),
        ({"stem": "svhn"}, "stem must be one of cifar, imagenet, got 'svhn'"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"growth": 0}, "growth must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (
            {"gr_factor": (4, 2)},
            r"gr_factor must have 3 entries .* in scale_list, got \[4, 2\]; make both equally long",
        ),
        ({"bn_factor": (4, 2, 0)}, r"bn_factor must have 3 entries of at least 1, .* got \[4, 2, 0\]"),
        ({"reduction": 0.0}, "reduction must .* one of 25 channels .* got 0.0; the papers use 0.5"),
        ({"reduction": 1.5}, "reduction must be at most 1 .* got 1.5"),
        ({"compress": 0.0}, "compress must leave .* got 0.0 of 12 and 6 channels; the paper uses 0.25"),
        ({"compress": 1.0}, "compress must leave .* one from its own, got 1.0 of 12 and 6 channels"),
        ({"growth": 3}, "compress must leave .* got 0.25 of 6 and 3 channels"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RaNetConfig(**settings)
