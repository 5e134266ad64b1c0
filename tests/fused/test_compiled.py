"""Compiled units: the masked execution to rounding, and a sentence for networks that have no use for them."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning_fabric import Fabric
from torch._inductor import config as inductor

from sidestep.errors import RecipeError
from sidestep.execution.execution import blend, masked
from sidestep.fused import compiled
from sidestep.fused.compiled import compiled_units, training_execution
from sidestep.layers import fused
from sidestep.layers.preact import PreactBlock
from sidestep.layers.residual import BasicBlock
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.routing import fused_relation
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict


def build(method: dict[str, object], **model: object) -> DynamicNetwork:
    recipe = from_dict(
        {
            "name": "tiny",
            "method": method,
            "model": {"name": "cifar_resnet8"} | model,
            "data": {"source": "digits"},
            "training": {"phases": [{"name": "joint", "epochs": 1}]},
        }
    )
    return untrained(recipe, num_classes=10)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_units_train_as_masked_ones_do() -> None:
    network = build({"name": "rdi_net", "router": {"dim": 8}})
    images = torch.randn(4, 3, 16, 16)
    results = []
    for way in (nullcontext(masked), compiled_units(network)):
        network.zero_grad()
        with way as execute:
            out = network.train()(images, execution=execute)
        out.logits.square().sum().backward()
        results.append(
            [out.logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["static", "act"])
def test_networks_without_routed_units_refuse_to_be_compiled(method: str) -> None:
    with pytest.raises(RecipeError, match="compile needs a network whose routers decide"):
        compiled_units(build({"name": method})).__enter__()


def test_on_a_cpu_residual_blocks_and_routers_fuse_and_other_units_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def noted(function: Callable[..., object], **_: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            ran.append(function.__name__)
            return function(*arguments)

        return run

    for module in (fused, fused_relation):
        monkeypatch.setattr(module, "compiled", noted)
    monkeypatch.setattr(torch, "compile", noted)
    network = build({"name": "rdi_net", "router": {"dim": 8}}).train()
    x, weights = torch.randn(4, 16, 8, 8), torch.rand(4, 2)
    units: dict[Unit, list[str]] = {
        BasicBlock(16, 16, stride=1, stage=0): ["norm_relu_forward", "_norm_blend_forward"],
        PreactBlock(16, 16, stride=1, stage=0): ["blend"],
    }
    with compiled_units(network) as execute:
        for unit, expected in units.items():
            ran: list[str] = []
            out = execute.run(unit.train(), x, weights)
            assert ran == expected
            torch.testing.assert_close(out, blend(unit, x, weights), rtol=1e-5, atol=1e-5)
        ran = []
        assert network.router is not None
        network.router(0, x, network.router.begin(x))
        assert ran == ["_forward"]


def fabric_of(device: str = "cpu", world_size: int = 1) -> Fabric:
    return cast(Fabric, SimpleNamespace(device=torch.device(device), world_size=world_size))


LONG, SHORT = 1e14, 1e12


@pytest.mark.parametrize(
    ("method", "model", "macs", "fabric", "compiles"),
    [
        ("rdi_net", {}, LONG, fabric_of(), True),
        ("rdi_net", {}, SHORT, fabric_of(), False),
        ("rdi_net", {"name": "cifar_preact_resnet32"}, LONG, fabric_of(), False),
        ("rdi_net", {}, LONG, fabric_of("cuda"), False),
        ("rdi_net", {}, LONG, fabric_of(world_size=2), False),
        ("static", {}, LONG, fabric_of(), False),
        ("act", {}, LONG, fabric_of(), False),
    ],
)
def test_units_are_compiled_unasked_where_it_pays(
    method: str,
    model: dict[str, object],
    macs: float,
    fabric: Fabric,
    compiles: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "_compiler_works", lambda: True)
    with training_execution(build({"name": method}, **model), None, macs=macs, fabric=fabric) as execute:
        assert (execute is not masked) == compiles


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_does_not_work_is_noticed() -> None:
    network = build({"name": "rdi_net"})
    torch.compiler.reset()
    missing = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with inductor.patch(missing):
        with training_execution(network, None, macs=LONG, fabric=fabric_of()) as execute:
            assert execute is masked
        with pytest.raises(RecipeError, match="compiler and Python's headers, got none"):
            training_execution(network, True, macs=SHORT, fabric=fabric_of()).__enter__()
        with training_execution(network, False, macs=LONG, fabric=fabric_of()) as execute:
            assert execute is masked
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_residual_block_can_be_compiled_as_a_whole() -> None:
    unit, x, weights = BasicBlock(4, 4, stride=1, stage=0), torch.randn(2, 4, 6, 6), torch.rand(2, 2)
    whole = torch.compile(blend, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(unit, x, weights), unit(x, weights))
