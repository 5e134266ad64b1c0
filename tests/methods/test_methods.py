"""Methods: what they build, and the sum of their losses."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidestep.cost.macs import measure_cost
from sidestep.errors import RecipeError
from sidestep.execution.execution import gathered
from sidestep.losses.budget import cost_loss
from sidestep.losses.paths import rank_loss
from sidestep.methods.blockdrop import BLOCKDROP, BlockDropConfig
from sidestep.methods.codinet import CODINET, CoDiNetConfig
from sidestep.methods.convnet_aig import CONVNET_AIG, ConvNetAigConfig
from sidestep.methods.fixed_path import FIXED_PATH, FixedPathConfig
from sidestep.methods.method import Method
from sidestep.methods.random_drop import RANDOM_DROP, RandomDropConfig, Survival
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig, SrmConfig
from sidestep.methods.skipnet import SKIPNET, SkipNetConfig
from sidestep.methods.static import STATIC, StaticConfig
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.policy import PolicyRouter
from sidestep.routing.samplers import GumbelSoftmax, argmax
from sidestep.training.step import select_parameters
from sidestep.training.training_config import Phase
from sidestep.types import Batch, Decisions, RoutedOutput
from tests.doubles import model_config, noise

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
    assert cost.routers.sum() == 0
    assert cost.per_sample(output.decisions)[0] == cost.full - 3_538_944


def test_what_a_fixed_path_skips_is_computed_in_training_neither_and_learns_nothing() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet8"), 10)
    settings = FixedPathConfig(path="1 0 1")
    network = RoutedNetwork(backbone, FIXED_PATH.router(backbone, settings)).train()
    phase = Phase(name="joint", epochs=1, lr=0.01)
    select_parameters(network, phase)()
    assert network.router is not None
    skipped = backbone.units[1]
    runs: list[nn.Module] = []
    for unit in backbone.units:
        convolution = next(part for part in unit.modules() if isinstance(part, nn.Conv2d))
        convolution.register_forward_hook(lambda module, given, out: runs.append(module))
    images = torch.randn(4, 3, 32, 32)
    output = network(images, sampler=network.router.sampler(settings))
    torch.testing.assert_close(output.logits, network(images).logits)
    output.logits.sum().backward()
    # The second pass is one without the path's own sampler.
    assert len(runs) == 2 + 3 and not any(module in runs[:2] for module in skipped.modules())
    assert {name for name, part in network.named_parameters() if part.grad is None} == {
        f"backbone.{name}"
        for name, part in backbone.named_parameters()
        if any(part is own for own in skipped.parameters())
    }
    select_parameters(network, replace(phase, train="blocks", paths="uniform"))
    assert all(part.requires_grad for part in backbone.parameters())


@pytest.mark.parametrize("path", ["", "102", "yes"])
def test_a_path_of_something_else_is_refused(path: str) -> None:
    with pytest.raises(RecipeError, match="path must be made of 0 and 1"):
        FixedPathConfig(path=path)


def test_a_path_of_another_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="got 2 for 3 units"):
        FIXED_PATH.router(BACKBONE, FixedPathConfig(path="10"))


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"num_units": 4, "order": "first"}, "111100000"),
        ({"num_units": 9, "order": "first"}, "111111111"),
        ({"num_units": 1, "order": "spread"}, "000010000"),
        ({"num_units": 3, "order": "spread"}, "010010010"),
        ({"num_units": 4, "order": "spread"}, "010101010"),
        ({"num_units": 0, "order": "spread"}, "000000000"),
        ({"path": "101 010 101"}, "101010101"),
    ],
)
def test_a_number_of_units_are_the_first_or_lie_evenly_spread(settings: dict[str, Any], path: str) -> None:
    assert FixedPathConfig(**settings).executed(9) == [unit == "1" for unit in path]


@given(st.integers(1, 60), st.data())
def test_spread_units_are_as_many_as_asked_and_their_gaps_are_equal(units: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, units))
    executed = FixedPathConfig(num_units=count, order="spread").executed(units)
    places = [unit for unit, runs in enumerate(executed) if runs]
    gaps = {after - before for before, after in pairwise(places)}
    assert len(places) == count
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_first_units_run_for_every_image() -> None:
    settings = FixedPathConfig(num_units=2, order="first")
    network = RoutedNetwork(BACKBONE, FIXED_PATH.router(BACKBONE, settings)).eval()
    assert network(torch.randn(4, 3, 32, 32)).decisions.paths().tolist() == [[1, 1, 0]] * 4


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


def run(method: Any, settings: Any, **of_batch: Any) -> dict[str, torch.Tensor]:
    network = RoutedNetwork(BACKBONE, method.router(BACKBONE, settings)).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    output = network(images, sampler=method.sampler(settings, noise()))
    batch = Batch(images=images, labels=labels, **of_batch)
    terms: dict[str, torch.Tensor] = method.losses(output, batch, measure_cost(network, (32, 32)), settings)
    return terms | {"_executed": output.decisions.execution().detach()}


def test_convnet_aigs_loss_is_the_mean_distance_of_rates_from_their_targets() -> None:
    terms = run(CONVNET_AIG, ConvNetAigConfig(schedule=[1.0, 0.4, 0.7], cost_weight=3.0))
    rates = terms["_executed"].mean(dim=0)
    assert rates[0] == 1
    expected = 3 * ((rates[1] - 0.4) ** 2 + (rates[2] - 0.7) ** 2) / 3
    torch.testing.assert_close(terms["cost"].detach(), expected)


def test_a_schedule_of_another_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="schedule must name every block once, got 2 rates for 3 blocks"):
        CONVNET_AIG.router(BACKBONE, ConvNetAigConfig(schedule=[0.5, 0.5]))


def test_codinets_terms_are_those_of_its_paths_and_blocks() -> None:
    settings = CoDiNetConfig(num_units=1.2, gate_mode="hard", path_weight=0.4)
    terms = run(CODINET, settings, views=2)
    executed = terms["_executed"].sum(dim=1).mean()
    torch.testing.assert_close(terms["cost"].detach(), 0.05 * (executed - 1.2).abs())
    assert terms.keys() == {"cost", "consistency", "diversity", "_executed"}
    assert "diversity" not in run(CODINET, replace(settings, path_weight=0.0), views=2)


def test_skipnet_adds_nothing_before_its_hybrid_phase() -> None:
    assert run(SKIPNET, SkipNetConfig()).keys() == {"_executed"}
    hybrid = SkipNetConfig(decisions="sampled", policy_weight=0.1)
    assert run(SKIPNET, hybrid).keys() == {"_executed", "policy"}


def test_a_sharper_skipnet_policy_draws_its_most_probable_decisions() -> None:
    sampler = SKIPNET.sampler(SkipNetConfig(decisions="sampled", sharpness=1e4), noise())
    logits = torch.randn(256, 2)
    assert torch.equal(sampler(logits).weights, argmax(logits).weights)


def test_blockdrop_learns_about_the_free_units_alone() -> None:
    settings = BlockDropConfig(free_units=1.9)
    router = BLOCKDROP.router(BACKBONE, settings)
    assert isinstance(router, PolicyRouter)
    network = RoutedNetwork(BACKBONE, router).train()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        greedy = RoutedOutput(
            logits=torch.randn(16, 10), decisions=Decisions(weights=torch.eye(2)[[1, 1, 1]].expand(16, 3, 2))
        )
    assert BLOCKDROP.curriculum is not None
    decider = BLOCKDROP.curriculum(router, settings)
    output = network(images, sampler=BLOCKDROP.sampler(settings, noise()), router=decider)
    assert output.decisions.execution()[:, :2].unique().tolist() == [1.0]
    # Drawn paths are right, so that they have an advantage over most of the greedy ones.
    batch = Batch(images=images, labels=output.logits.argmax(dim=1), greedy=greedy)
    terms = BLOCKDROP.losses(output, batch, measure_cost(network, (32, 32)), settings)
    terms["policy"].backward()
    head = router.network.fc.weight.grad
    assert head is not None
    assert head[:2].abs().sum() == 0
    assert head[2].abs().sum() > 0


def test_entropy_is_asked_for_and_can_be_one_sided() -> None:
    full, one_sided = (
        BlockDropConfig(entropy_weight=1),
        BlockDropConfig(entropy_weight=1, one_sided_entropy=True),
    )
    values = []
    for settings in (full, one_sided):
        torch.manual_seed(0)
        network = RoutedNetwork(BACKBONE, BLOCKDROP.router(BACKBONE, settings))
        images = torch.randn(4, 3, 32, 32)
        output = network(images, sampler=BLOCKDROP.sampler(settings, noise()))
        batch = Batch(images=images, labels=torch.zeros(4).long(), greedy=output)
        values.append(BLOCKDROP.losses(output, batch, measure_cost(network, (32, 32)), settings)["entropy"])
    assert -3 * 0.6931 <= values[0] < values[1] < 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvNetAigConfig(target=1.2), "target must be in .0, 1., got 1.2"),
        (lambda: ConvNetAigConfig(schedule=[0.5, -1]), "schedule must be in .0, 1."),
        (lambda: ConvNetAigConfig(temperature=0), "temperature must be above 0"),
        (lambda: CoDiNetConfig(num_units=-1), "num_units must be at least 0, got -1"),
        (
            lambda: CODINET.router(BACKBONE, CoDiNetConfig(num_units=9)),
            "at most the network's 3 blocks, got 9",
        ),
        (lambda: SkipNetConfig(policy_weight=1), "set decisions: sampled"),
        (lambda: SkipNetConfig(gate="feedforward1", width=4), "width belongs to the recurrent gate"),
        (lambda: SkipNetConfig(gamma=2), "gamma must be in"),
        (lambda: BlockDropConfig(alpha=0.3), "alpha must be in .0.5, 1., got 0.3"),
        (lambda: BlockDropConfig(penalty=1), "penalty must be at most 0"),
        (lambda: BlockDropConfig(one_sided_entropy=True), "no effect with entropy_weight 0"),
        (lambda: RandomDropConfig(keep_rate=0.4, decay="linear"), "keep_rate must be in .0.5, 1."),
        (lambda: RandomDropConfig(keep_rate=0, evaluate="all"), "keep_rate must be above 0 with .* got 0"),
        (
            lambda: RandomDropConfig(keep_rate=0.5, decay="linear", evaluate="all"),
            "keep_rate must be above 0.5 with decay 'linear'",
        ),
        (lambda: RandomDropConfig(evaluate="all", seed=3), "seed has no effect with evaluate 'all', got 3"),
        (
            lambda: RANDOM_DROP.router(BACKBONE, RandomDropConfig(evaluate="all")),
            "model.mix must be branch with evaluate 'all', .* got output; set it",
        ),
        (lambda: FixedPathConfig(), "path or num_units must be set, and one alone, got None and None; for"),
        (lambda: FixedPathConfig(path="101", num_units=2, order="first"), "got '101' and 2"),
        (
            lambda: FixedPathConfig(num_units=2),
            "order must be set beside num_units and nowhere else, got None",
        ),
        (lambda: FixedPathConfig(path="101", order="first"), "got 'first' with num_units None"),
        (lambda: FixedPathConfig(num_units=-1, order="first"), "num_units must be at least 0, got -1"),
        (
            lambda: FIXED_PATH.router(BACKBONE, FixedPathConfig(num_units=4, order="spread")),
            "num_units must be at most the network's 3 units, got 4",
        ),
    ],
)
def test_wrong_settings_get_a_sentence(build: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (FIXED_PATH, FixedPathConfig(path="101")),
        (RANDOM_DROP, RandomDropConfig()),
        (SKIPNET, SkipNetConfig()),
        (BLOCKDROP, BlockDropConfig()),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_methods_of_two_options_refuse_units_with_more(method: Method[Any], settings: Any) -> None:
    backbone = build_backbone(model_config("cifar_resnet8", options=3), 10)
    with pytest.raises(
        RecipeError, match=rf"method {method.name} .* model\.options must be 2, got 3; drop it"
    ):
        method.router(backbone, settings)


def test_stochastic_depth_drops_in_training_and_evaluates_the_whole_network() -> None:
    backbone = build_backbone(model_config("cifar_resnet8", mix="branch"), 10).eval()
    settings = RandomDropConfig(keep_rate=0.6, decay="linear", evaluate="all")
    network, images = RoutedNetwork(backbone, RANDOM_DROP.router(backbone, settings)), torch.randn(4, 3, 8, 8)
    output = network(images)
    assert torch.equal(output.decisions.execution(), torch.ones(4, 3))
    assert torch.equal(network(images, execution=gathered).logits, output.logits)
    torch.testing.assert_close(output.logits, backbone(images))
    assert network.router is not None and RANDOM_DROP.curriculum is not None
    in_training = RANDOM_DROP.curriculum(network.router, settings)
    sampler, many = RANDOM_DROP.sampler(settings, noise()), torch.randn(4000, 3, 4, 4)
    weights = network(many, sampler=sampler, router=in_training).decisions.execution()
    # Rates 1, 0.6 and 0.2: what is executed weighs one over its rate, so that branches keep their mean.
    torch.testing.assert_close(
        (weights > 0).float().mean(dim=0), torch.tensor([1, 0.6, 0.2]), atol=0.03, rtol=0
    )
    torch.testing.assert_close(weights.mean(dim=0), torch.ones(3), atol=0.15, rtol=0)
    torch.testing.assert_close(weights.max(dim=0).values, torch.tensor([1, 1 / 0.6, 5]))


def test_in_training_a_surviving_branch_weighs_one_over_its_rate() -> None:
    backbone = build_backbone(model_config("cifar_resnet8", mix="branch"), 10).eval()
    unit, x = backbone.units[0], torch.rand(16, 16, 4, 4)
    sample = Survival(noise=noise())(torch.tensor([[0.25, 0.75]]).log().expand(16, 2))
    kept = sample.weights[:, 1] > 0
    assert 0 < kept.sum() < 16
    out = unit(x, sample.weights)
    torch.testing.assert_close(out[~kept], x[~kept])
    torch.testing.assert_close(out[kept], torch.relu(x + unit.branch(x) / 0.75)[kept])


def test_random_dropping_itself_trains_as_it_evaluates() -> None:
    settings = RandomDropConfig()
    router = RANDOM_DROP.router(BACKBONE, settings)
    assert router is not None and RANDOM_DROP.curriculum is not None
    assert RANDOM_DROP.curriculum(router, settings) is router
    assert RANDOM_DROP.sampler(settings, noise()) is argmax


def test_keep_rates_fall_linearly_around_their_mean() -> None:
    assert RandomDropConfig(keep_rate=0.6, decay="linear").rates(3) == pytest.approx([1.0, 0.6, 0.2])
    assert RandomDropConfig(keep_rate=0.6).rates(2) == [0.6, 0.6]
