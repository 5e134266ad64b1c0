"""Methods: what they build, and the sum of their losses."""

from dataclasses import replace

import pytest
import torch

from sidestep.backbones.build import ModelConfig, build_backbone
from sidestep.backbones.routed import RoutedNetwork
from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.losses.budget import cost_loss
from sidestep.losses.paths import rank_loss
from sidestep.methods.fixed_path import FIXED_PATH, FixedPathConfig
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig, SrmConfig
from sidestep.methods.static import STATIC, StaticConfig
from sidestep.routing.samplers import GumbelSoftmax
from sidestep.types import Batch
from tests.doubles import noise

BACKBONE = build_backbone(ModelConfig(name="cifar_resnet8"), 10)


def test_the_static_network_executes_everything() -> None:
    network = RoutedNetwork(BACKBONE, STATIC.router(BACKBONE, StaticConfig())).eval()
    images = torch.randn(2, 3, 32, 32)
    output = network(images)
    assert torch.equal(output.decisions.execution(), torch.ones(2, 3))
    assert torch.equal(output.logits, BACKBONE(images))


def test_a_fixed_path_is_the_same_for_every_image() -> None:
    network = RoutedNetwork(BACKBONE, FIXED_PATH.router(BACKBONE, FixedPathConfig(path="1 0 1"))).eval()
    output = network(torch.randn(4, 3, 32, 32))
    assert output.decisions.paths().tolist() == [[1, 0, 1]] * 4
    cost = measure_cost(network, (32, 32))
    assert cost.router_macs.sum() == 0
    assert cost.per_sample(output.decisions)[0] == cost.full_macs - 3_538_944


@pytest.mark.parametrize("path", ["", "102", "yes"])
def test_a_path_of_something_else_is_refused(path: str) -> None:
    with pytest.raises(RecipeError, match="path must be made of 0 and 1"):
        FixedPathConfig(path=path)


def test_a_path_of_another_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="got 2 for 3 units"):
        FIXED_PATH.router(BACKBONE, FixedPathConfig(path="10"))


def rdi_output() -> tuple[RoutedNetwork, Batch]:
    network = RoutedNetwork(BACKBONE, RDI_NET.router(BACKBONE, RdiNetConfig()))
    batch = Batch(images=torch.randn(8, 3, 32, 32), labels=torch.zeros(8).long(), statistics=torch.rand(8, 5))
    return network, batch


@pytest.mark.parametrize("gate_mode", ["soft", "hard"])
def test_rdi_nets_terms_are_weighted_as_in_equation_16(gate_mode: str) -> None:
    network, batch = rdi_output()
    settings = RdiNetConfig(gate_mode=gate_mode, target=0.4, cost_weight=3.0, srm=SrmConfig(alpha=0.7))  # type: ignore[arg-type]  # a test parameter
    output = network(batch.images, sampler=RDI_NET.sampler(settings, noise()))
    cost = measure_cost(network, (32, 32))
    terms = RDI_NET.losses(output, batch, cost, settings)
    assert torch.allclose(terms["cost"], 3 * cost_loss(output.decisions, 0.4, cost))
    assert batch.statistics is not None
    expected = 0.7 * rank_loss(output.decisions.relaxed_execution(), batch.statistics)
    assert torch.allclose(terms["rank"], expected)
    hard = output.decisions.weights.detach()
    assert (((hard == 0) | (hard > 0.999)).all()) == (gate_mode == "hard")


def test_alpha_zero_switches_the_rank_loss_and_its_statistics_off() -> None:
    network, batch = rdi_output()
    settings = RdiNetConfig(srm=SrmConfig(alpha=0))
    assert RDI_NET.statistics(settings) is None
    output = network(batch.images, sampler=RDI_NET.sampler(settings, noise()))
    terms = RDI_NET.losses(output, replace(batch, statistics=None), measure_cost(network, (32, 32)), settings)
    assert list(terms) == ["cost"]


def test_the_sampler_has_the_methods_temperature_and_noise() -> None:
    sampler = RDI_NET.sampler(RdiNetConfig(temperature=2.0, noise_scale=0.5, gate_mode="hard"), noise())
    assert isinstance(sampler, GumbelSoftmax)
    assert (sampler.temperature, sampler.noise_scale, sampler.hard) == (2.0, 0.5, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.5}, "target must be in"),
        ({"cost_weight": -1}, "cost_weight must be at least 0"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"noise_scale": -0.1}, "noise_scale must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RdiNetConfig(**settings)  # type: ignore[arg-type]  # a test parameter
