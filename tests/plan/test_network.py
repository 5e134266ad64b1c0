"""Plans of whole networks, read literally, against the networks themselves."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from sidestep.backbones.wrapping import wrap_network
from sidestep.errors import ExportError
from sidestep.networks.attached_exits import attach_exits
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.format import Plan, inputs_of, lists_of_ops
from sidestep.plan.from_network import export_plan
from sidestep.routing.exit_rule import CRITERIA, ExitCriterion, ExitRule, register_criterion, scores
from sidestep.routing.router import Router
from tests import strategies
from tests.doubles import EXIT_NETWORKS, relational_router, shared_exit_network, shared_network
from tests.marks import slow_where
from tests.plan.networks import NUM_CLASSES, card_of, divide, lively, network_of, plan_of
from tests.reference.plan import run_plan


def rdi_net(**router: Any) -> dict[str, Any]:
    return {"name": "rdi_net", "router": {"dim": 8, **router}}


RDI_NET = rdi_net(dim=16)
SMALL: dict[str, Any] = {"name": "cifar_resnet14"}
PREACT: dict[str, Any] = {"name": "cifar_preact_resnet14"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rdi_net": (RDI_NET, SMALL),
    "normalised": (rdi_net(gamma=0.9, normalize_adj=True), SMALL),
    "auto": (rdi_net(gamma="auto", reach=3, share_gcn="all"), SMALL),
    "auto_normalised": (rdi_net(gamma="auto", normalize_adj=True, batch_norm=False), SMALL),
    "vanilla": (rdi_net(gamma=0.0), SMALL | {"shortcut": "B"}),
    "three_options": (RDI_NET, SMALL | {"options": 3}),
    "squeeze_excite": (RDI_NET, SMALL | {"se_ratio": 4}),
    "preact": (RDI_NET, PREACT),
    "convnet_aig": ({"name": "convnet_aig", "schedule": [1.0, *[0.6] * 5]}, SMALL | {"mix": "branch"}),
    "skipnet": ({"name": "skipnet"}, SMALL | {"shortcut": "B", "skip": "linear"}),
    "skipnet_ff1": ({"name": "skipnet", "gate": "feedforward1"}, SMALL),
    "skipnet_ff2": ({"name": "skipnet", "gate": "feedforward2"}, SMALL | {"shortcut": "pool_both"}),
    "blockdrop": ({"name": "blockdrop"}, SMALL | {"shortcut": "pool_end"}),
    "blockdrop_shrunk": ({"name": "blockdrop", "shrink": 2}, SMALL),
    "codinet": ({"name": "codinet", "num_units": 3}, SMALL | {"shortcut": "B", "skip": "own"}),
    "fixed_path": ({"name": "fixed_path", "path": "1 0 1 0 1 1"}, SMALL),
    "static": ({"name": "static"}, SMALL),
    "static_preact": ({"name": "static"}, PREACT),
}
PHOTOGRAPHS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet18": (RDI_NET, {"name": "resnet18"}),
    "resnet50": (RDI_NET, {"name": "resnet50", "skip": "linear", "se_ratio": 16}),
    "preact": (RDI_NET, {"name": "preact_resnet50"}),
}
ONE_PATH = {"fixed_path", "static", "static_preact"}


def assert_parity(plan: Plan, network: DynamicNetwork, images: Tensor, *, num_paths: int = 2) -> None:
    """Assert that the plan of an image gives what the network does masked, for every image."""
    with torch.no_grad():
        output = network(images)
    paths = output.decisions.paths().tolist()
    assert len(set(map(tuple, paths))) >= num_paths
    for index, image in enumerate(images):
        logits, decisions, _ = run_plan(plan.document, plan.tensors, image)
        assert decisions == (paths[index] if plan.num_units else [])
        expected = output.logits[index]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_the_masked_network_at_every_size(name: str) -> None:
    network = network_of(*CASES[name])
    plan = plan_of(network)
    num_paths = 1 if name in ONE_PATH else 3
    assert_parity(plan, network, strategies.images(16, 0, size=16), num_paths=num_paths)
    assert_parity(plan, network, strategies.images(2, 1, size=21)[..., :18], num_paths=1)


@pytest.mark.parametrize("name", slow_where(lambda name: name != "resnet18", PHOTOGRAPHS))
def test_networks_for_photographs_are_exported(name: str) -> None:
    network = network_of(*PHOTOGRAPHS[name], size=(40, 40))
    plan = plan_of(network, (40, 40))
    assert_parity(plan, network, strategies.images(3, 0, size=40))
    assert_parity(plan, network, strategies.images(1, 1, size=53)[..., :44], num_paths=1)


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "seresnext26t_32x4d"])
def test_wrapped_resnets_are_exported(name: str) -> None:
    network = RoutedNetwork(wrap_network(timm.create_model(name, num_classes=NUM_CLASSES)), None)
    network.router = relational_router(network.backbone)
    lively(network, strategies.images(16, 0, size=64))
    plan = plan_of(network, (64, 64))
    assert_parity(plan, network, strategies.images(4, 0, size=64))
    assert_parity(plan, network, strategies.images(1, 1, size=70), num_paths=1)
    assert not [name for name in plan.tensors if name.startswith("constant")]


def test_executed_blocks_are_two_convolutions_and_nothing_else() -> None:
    plan = plan_of(shared_network(depth=14))
    options = [step["options"] for step in plan.steps if "choose" in step]
    assert plan.num_units == len(options) == 6
    for unit, (skip, execute) in enumerate(options):
        ops = [op["op"] for op in execute["ops"]]
        assert ops == (["conv", "pad", "conv"] if unit in (2, 4) else ["conv", "conv"])
        assert [op["relu"] for op in execute["ops"] if op["op"] == "conv"] == [True, True]
        assert execute["ops"][-1]["residual"] is not None
        assert [op["op"] for op in skip["ops"]] == (["pad"] if unit in (2, 4) else [])
    routers = [op["op"] for step in plan.steps[:3:2] for op in step["ops"]]
    assert routers == [
        "conv",
        "gap",
        "linear",
        "linear",
        "linear",
        "gap",
        "linear",
        "vadd",
        "linear",
        "linear",
    ]


@pytest.mark.parametrize("name", ["three_options", "preact", "skipnet_ff2"])
def test_no_normalisation_addition_or_relu_is_left_behind_a_convolution(name: str) -> None:
    for ops in lists_of_ops(plan_of(network_of(*CASES[name])).steps):
        read = [value for op in ops for value in inputs_of(op)]
        convolved = {op["out"] for op in ops if op["op"] == "conv" and read.count(op["out"]) == 1}
        assert not [op for op in ops if op["op"] in ("affine", "relu") and op["in"] in convolved]


def test_weights_have_the_names_of_the_network_and_are_stored_once() -> None:
    plan = plan_of(network_of(rdi_net(share_gcn="all"), SMALL))
    assert not [name for name in plan.tensors if name.startswith("constant")]
    assert {"backbone.layer1.0.conv1.weight", "backbone.conv1.bias"} <= plan.tensors.keys()
    assert sum(name.startswith("router.gcn") for name in plan.tensors) == 1
    assert all(tensor.dtype == torch.float32 for tensor in plan.tensors.values())


def test_values_are_numbered_in_the_order_of_their_definition() -> None:
    plan = plan_of(shared_network(depth=8))
    defined = []
    for step in plan.steps:
        defined += [op["out"] for ops in lists_of_ops([step]) for op in ops] + step.get("defines", [])
    assert defined == list(range(1, len(defined) + 1))
    assert plan.document["output"] == len(defined)


def test_the_document_says_what_belongs_to_the_network() -> None:
    network = shared_network(depth=8)
    document = plan_of(network).document
    assert document["version"] == 1
    assert document["input"] == {
        "channels": 3,
        "size": [16, 16],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
    }
    assert document["classes"] == list("abcde")
    cost = document["cost"]
    assert len(cost["option_macs"]) == len(cost["router_macs"]) == 3
    assert cost["full_macs"] == cost["fixed_macs"] + sum(row[-1] for row in cost["option_macs"])


def test_the_network_is_left_as_it_was() -> None:
    network = network_of(*CASES["rdi_net"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plan_of(network)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


class Vain(Router):
    """A router of one's own that does what a test says."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.decide = nn.Linear(16, 2)

    def begin(self, images: Tensor) -> Any:
        return {"seen": (), "hidden": frozenset([images.mean((2, 3))]) if self.what == "hides" else None}

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        pooled = features[:, :16].mean((2, 3)) if self.what == "slices" else features.mean((2, 3))[:, :16]
        if self.what == "counts" and pooled.sum() > 0:
            pooled = pooled + 1
        if self.what == "sorts":
            pooled = pooled.sort(dim=1).values
        if self.what == "changes":
            features.mul_(2)
        seen = state["seen"]
        return self.decide(sum(seen, pooled).flip(1)), state | {"seen": (*seen, pooled * 0.5)}


def with_vain_router(what: str) -> RoutedNetwork:
    return RoutedNetwork(shared_network(depth=8).backbone, Vain(what)).eval()


def test_a_router_of_ones_own_needs_no_code_here() -> None:
    network = with_vain_router("works")
    divide(network, strategies.images(16, 0, size=16))
    assert_parity(plan_of(network), network, strategies.images(16, 0, size=16))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("sorts", r"the router of unit 0 uses aten.sort.default on vectors, and plans have no operation"),
        ("slices", r"the router of unit 2 takes a part of a map, and plans its middle or every n-th"),
        ("changes", r"the router of unit 0 uses aten.copy_.default on maps"),
        ("counts", r"the router of unit 0 cannot be traced: .*; compute it from tensors alone"),
        ("hides", r"the router's start returns a frozenset, which may hide tensors; return tuples"),
    ],
)
def test_routers_that_no_plan_can_express_are_refused(what: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_plan(with_vain_router(what), card_of(shared_network(depth=8)))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("act", "act and sact weigh the outputs of several units"),
        ("sact", "act and sact weigh the outputs of several units"),
        ("random_drop", "random_drop decides by a hash of the pixels in float64"),
    ],
)
def test_methods_that_are_no_choice_of_options_are_refused_by_name(method: str, message: str) -> None:
    model = SMALL if method == "random_drop" else PREACT
    with pytest.raises(ExportError, match=message):
        plan_of(network_of({"name": method}, model))


def test_weights_that_are_not_finite_are_refused() -> None:
    network = network_of(*CASES["rdi_net"])
    with torch.no_grad():
        network.backbone.fc.bias[0] = torch.nan
    with pytest.raises(ExportError, match=r"backbone.fc.bias must be finite, and is not; train the network"):
        plan_of(network)


def dividing_rule(exit_logits: Tensor, criterion: str) -> ExitRule:
    """Return a rule by which a third of the images leaves at each of three exits, none of them narrowly."""
    temperatures = [0.8, 1.2, 1.0]
    first, second, _ = scores(exit_logits, criterion, temperatures)
    third = len(first) // 3
    stay = first.argsort()[: 2 * third]
    thresholds = [seen.sort().values[-third - 1 :][:2].mean().item() for seen in (first, second[stay])]
    return ExitRule(thresholds=thresholds, criterion=criterion, temperatures=temperatures)


@pytest.mark.parametrize(
    ("method", "criterion"), [("rdi_net", "confidence"), ("static", "margin"), ("rdi_net", "entropy")]
)
def test_attached_exits_let_images_leave_where_the_rule_says(method: str, criterion: str) -> None:
    images = strategies.images(24, 0, size=16)
    network = network_of(RDI_NET if method == "rdi_net" else {"name": method}, SMALL)
    attached = attach_exits(network, ["layer1", "layer2.0"], num_classes=NUM_CLASSES, width=4)
    attached = lively(attached, images)
    with torch.no_grad():
        rule = dividing_rule(attached(images).exit_logits, criterion)
        output = attached(images, rule=rule)
    plan = plan_of(attached, rule=rule)
    exits, paths = output.decisions.exits.argmax(dim=1).tolist(), output.decisions.paths().tolist()
    assert set(exits) == {0, 1, 2}
    for index, image in enumerate(images):
        logits, decisions, left = run_plan(plan.document, plan.tensors, image)
        assert (2 if left is None else left) == exits[index]
        assert decisions == paths[index][: len(decisions)]
        torch.testing.assert_close(logits, output.logits[index], rtol=1e-4, atol=1e-5)


def test_without_a_rule_no_exit_but_the_last_is_computed() -> None:
    attached = attach_exits(network_of(RDI_NET, SMALL), ["layer1"], num_classes=NUM_CLASSES).eval()
    plan = plan_of(attached)
    assert not [name for name in plan.tensors if name.startswith("exits")]
    assert_parity(plan, attached, strategies.images(4, 0, size=16))


def test_exit_rules_that_no_plan_can_express_are_refused() -> None:
    attached = attach_exits(network_of(RDI_NET, SMALL), ["layer1"], num_classes=NUM_CLASSES).eval()
    doubt = ExitCriterion(name="doubt", summary="mine", score=lambda logits, agreeing: -logits.amax(dim=1))
    register_criterion(doubt)
    try:
        rule = ExitRule(thresholds=[2.0], criterion="doubt")
        with pytest.raises(ExportError, match="plans know no doubt at exits; calibrate with confidence"):
            plan_of(attached, rule=rule)
    finally:
        CRITERIA.remove("doubt")
    with pytest.raises(ExportError, match="an exit rule must have the network's 2 exits, got 3"):
        plan_of(attached, rule=ExitRule(thresholds=[0.5, 0.5]))


@pytest.mark.parametrize("name", EXIT_NETWORKS)
def test_networks_of_exits_alone_are_exported(name: str) -> None:
    network = shared_exit_network(name)
    plan = plan_of(network, rule=ExitRule(thresholds=[2.0] * (network.num_exits - 1)))
    steps = [step["exit"] for step in plan.steps if "exit" in step]
    for images in (strategies.images(2, 0, size=16), strategies.images(1, 1, size=27)[..., :24]):
        everywhere = network(images).exit_logits
        for exit in range(network.num_exits):
            for number, step in enumerate(steps):
                step["threshold"] = 2.0 if number < exit else 0.0
            for index, image in enumerate(images):
                logits, _, left = run_plan(plan.document, plan.tensors, image)
                assert (len(steps) if left is None else left) == exit
                torch.testing.assert_close(logits, everywhere[exit, index], rtol=1e-4, atol=1e-5)
