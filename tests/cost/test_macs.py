from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep.backbones.cifar_resnet import CifarResNet, CifarResNetConfig
from sidestep.cost.macs import measure_cost
from sidestep.execution.execution import gathered, masked
from sidestep.layers.shortcut import Shortcut
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.relational import RelationalConfig
from sidestep.routing.router import ConstantRouter
from sidestep.types import CostModel, Decisions
from tests import strategies
from tests.doubles import TableRouter, lively_network, relational_router, shared_network
from tests.reference.macs import CountedMacs

MACS = {
    20: (40_551_040, 40_813_184),
    32: (68_862_592, 69_124_736),
    38: (83_018_368, 83_280_512),
    44: (97_174_144, 97_436_288),
    56: (125_485_696, 125_747_840),
    74: (167_953_024, 168_215_168),
    110: (252_887_680, 253_149_824),
    152: (351_978_112, 352_240_256),
}


def cost_of(
    depth: int,
    shortcut: Shortcut = "A",
    num_classes: int = 10,
    router: RelationalConfig | None = None,
    size: tuple[int, int] = (32, 32),
) -> CostModel:
    with torch.device("meta"):
        backbone = CifarResNet(CifarResNetConfig(depth=depth, shortcut=shortcut, num_classes=num_classes))
        routers = None if router is None else relational_router(backbone, router)
    return measure_cost(RoutedNetwork(backbone, routers), size)


@cache
def cost_of_shared(shortcut: Shortcut) -> CostModel:
    return measure_cost(shared_network(14, shortcut), (8, 8))


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("depth", MACS)
def test_macs_are_those_of_the_specification_digit_for_digit(
    depth: int, option: Shortcut, num_classes: int
) -> None:
    macs = MACS[depth]["AB".index(option)] + 64 * (num_classes - 10)
    assert cost_of(depth, option, num_classes).full == macs


@pytest.mark.parametrize("option", ["pool_end", "pool_both"])
def test_shortcuts_that_pool_cost_nothing(option: Shortcut) -> None:
    assert torch.equal(cost_of(20, option).options, cost_of(20).options)


def test_resnet_110_is_priced_by_parts_as_in_the_specification() -> None:
    cost = cost_of(110)
    assert cost.fixed == 442_368 + 640
    assert not cost.options[:, 0].any()
    openers = {18, 36}
    expected = [3_538_944.0 if unit in openers else 4_718_592.0 for unit in range(54)]
    assert cost.options[:, 1].tolist() == expected
    assert not cost.routers.any()


def test_the_projections_of_option_b_are_paid_by_skipped_units_too() -> None:
    cost = cost_of(20, "B")
    assert cost.options[:, 0].tolist() == [0, 0, 0, 131_072, 0, 0, 131_072, 0, 0]
    assert (cost.options[:, 1] - cost.options[:, 0]).tolist() == cost_of(20).options[:, 1].tolist()


def test_a_tiny_network_agrees_with_hand_arithmetic() -> None:
    cost = cost_of(8, size=(8, 8))
    assert cost.fixed == 3 * 16 * 9 * 64 + 64 * 10
    assert cost.options[:, 1].tolist() == [
        2 * 16 * 16 * 9 * 64,
        (16 * 32 + 32 * 32) * 9 * 16,
        (32 * 64 + 64 * 64) * 9 * 4,
    ]


def test_height_and_width_are_counted_separately() -> None:
    assert cost_of(8, size=(8, 16)).fixed == 3 * 16 * 9 * 128 + 640


def test_routers_of_rdi_net_110_cost_what_the_specification_says() -> None:
    cost = cost_of(110, router=RelationalConfig())
    assert float(cost.routers.sum()) == 4_070_400
    assert cost.routers[[0, 20, 53]].tolist() == [c * 256 + 65_536 + 512 for c in (16, 32, 64)]
    everything = Decisions(weights=torch.tensor([0.0, 1.0]).expand(1, 54, 2))
    assert cost.per_sample(everything).item() == 252_887_680 + 4_070_400
    assert cost.per_sample(everything, routers=False).item() == 252_887_680


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.0}, {"gamma": "auto"}, {"share_gcn": "all"}, {"reach": 6}, {"batch_norm": False}]
)
def test_mixing_features_is_free_in_macs(settings: dict[str, Any]) -> None:
    expected = cost_of(14, router=RelationalConfig()).routers
    assert torch.equal(cost_of(14, router=RelationalConfig(**settings)).routers, expected)


def test_a_constant_router_is_free() -> None:
    network = RoutedNetwork(CifarResNet(CifarResNetConfig(depth=8)), ConstantRouter.keep([0.5] * 3))
    assert measure_cost(network, (8, 8)).routers.tolist() == [0, 0, 0]


def test_measuring_leaves_the_model_untouched() -> None:
    network = lively_network(8, "B")
    network.train()
    network.backbone.layer1.eval()
    for parameter in network.router.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    learns = [p.requires_grad for p in network.parameters()]
    measure_cost(network, (8, 8))
    after = network.state_dict()
    assert all(value.device.type == "cpu" for value in after.values())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == learns
    assert all(p.grad is None for p in network.parameters())
    assert network(strategies.images(2, 0)).logits.device.type == "cpu"


@pytest.mark.parametrize("shortcut", ["A", "B", "pool_end", "pool_both"])
def test_the_price_of_all_run_is_what_calls_count_in_a_masked_pass(shortcut: Shortcut) -> None:
    network, cost = shared_network(14, shortcut), cost_of_shared(shortcut)
    with torch.no_grad(), CountedMacs() as counted:
        network(strategies.images(1, 0), execution=masked)
    assert sum(counted.macs) == cost.full + float(cost.routers.sum())


@given(strategies.shortcuts, st.data())
def test_the_price_of_any_path_is_what_calls_count_in_a_gathered_pass(
    shortcut: Shortcut, data: st.DataObject
) -> None:
    network, cost = shared_network(14, shortcut), cost_of_shared(shortcut)
    table = data.draw(strategies.execution_tables(6, batch=1))
    with torch.no_grad(), CountedMacs() as counted:
        output = network(strategies.images(1, 0), router=TableRouter(table), execution=gathered)
    assert sum(counted.macs) == cost.per_sample(output.decisions, routers=False).item()


@given(strategies.seeds)
def test_the_price_of_a_routed_image_includes_the_routers_that_ran(seed: int) -> None:
    network, cost = shared_network(14), cost_of_shared("A")
    with torch.no_grad(), CountedMacs() as counted:
        output = network(strategies.images(1, seed), execution=gathered)
    assert sum(counted.macs) == cost.per_sample(output.decisions).item()


def test_measuring_hooks_into_no_module_that_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another training of the process may run its modules meanwhile."""
    hooks = []
    network = CifarResNet(CifarResNetConfig(depth=8))
    head = CifarResNet.head

    def watched(self: CifarResNet, features: torch.Tensor) -> torch.Tensor:
        hooks.append(len(torch.nn.modules.module._global_forward_pre_hooks))
        return head(self, features)

    monkeypatch.setattr(CifarResNet, "head", watched)
    measure_cost(RoutedNetwork(network), (32, 32))
    assert hooks == [0]
