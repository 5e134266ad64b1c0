"""Compiled units: the masked execution to rounding, and a sentence for networks that have no use for them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch._inductor import config as inductor

from sidestep.errors import RecipeError
from sidestep.execution.execution import Execution, blend, execute, masked
from sidestep.fused import compiler, norms, training_execution
from sidestep.fused.blocks import cheap_mean
from sidestep.fused.by_hand import mean_over_space
from sidestep.fused.training_execution import by_hand, compiled
from sidestep.layers.pool import averaging_by, global_average_pool, spatial_mean
from sidestep.layers.preact import PreactBlock
from sidestep.layers.residual import BasicBlock, HalfBlock
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.routing.samplers import Sample
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict

LONG, SHORT = 1e14, 1e12

MODELS: list[dict[str, object]] = [
    {},
    {"se_ratio": 4},
    {"mix": "branch"},
    {"shortcut": "B"},
    {"shortcut": "B", "skip": "own"},
    {"name": "cifar_resnet14", "preact": True},
    {"options": 3},
]


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


def fabric_of(device: str = "cpu", world_size: int = 1) -> Fabric:
    return cast(Fabric, SimpleNamespace(device=torch.device(device), world_size=world_size))


def chosen(network: DynamicNetwork, wanted: bool | None, macs: float, fabric: Fabric) -> Execution:
    with training_execution.training_execution(network, wanted, macs=macs, fabric=fabric) as execution:
        return execution


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize(
    ("execution", "model"),
    [
        *((by_hand, model) for model in MODELS),
        pytest.param(compiled, MODELS[0], marks=pytest.mark.slow),
        *(pytest.param(compiled, model, marks=pytest.mark.exhaustive) for model in MODELS[1:]),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else each.name,
)
def test_networks_train_as_masked_ones_do(execution: Execution, model: dict[str, object]) -> None:
    losses = {"srm": {"alpha": 0}} if "options" in model else {}
    network = build({"name": "rdi_net", "router": {"dim": 8}, **losses}, **model).train()
    network.to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    results = []
    for way in (masked, execution):
        network.load_state_dict(kept)
        network.zero_grad()
        with averaging_by(spatial_mean if way is masked else cheap_mean):
            out = network(images, execution=way, sampler=soft)
        out.logits.square().sum().backward()
        grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append([out.logits.detach(), *grads, *(b.clone() for b in network.buffers())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def soft(logits: Tensor) -> Sample:
    weights = (logits / 4).softmax(dim=1)
    return Sample(weights, weights)


def test_networks_that_run_no_units_refuse_to_be_compiled() -> None:
    with pytest.raises(RecipeError, match="compile needs a network of units that run or not"):
        chosen(build({"name": "act"}), True, SHORT, fabric_of())


def test_on_a_cpu_residual_blocks_have_passes_of_their_own_and_others_are_compiled_whole_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recorded(function: Callable[..., object], **_: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            ran.append(function.__name__)
            return function(*arguments)

        return run

    monkeypatch.setattr(norms, "compiled", recorded)
    monkeypatch.setattr(compiler, "_whole", lambda: recorded(blend))
    x, weights = torch.randn(4, 16, 8, 8), torch.rand(4, 2)
    units: dict[Unit, list[str]] = {
        BasicBlock(16, 16, stride=1, stage=0): ["_norm_relu_forward", "_norm_blend_forward"],
        PreactBlock(16, 16, stride=1, stage=0): ["blend"],
        HalfBlock(16, 16, stride=1, stage=0): [],
    }
    for unit, expected in units.items():
        ran: list[str] = []
        options = torch.cat([weights, weights], dim=1)[:, : unit.num_options]
        out = compiled.run(unit.train(), x, options)
        assert ran == expected
        torch.testing.assert_close(out, blend(unit, x, options), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(compiler, "_whole_execution", lambda: recorded(execute))
    for unit, passes in (
        (BasicBlock(16, 16, stride=1, stage=0), 2),
        (PreactBlock(16, 16, stride=1, stage=0), 1),
    ):
        ran = []
        out = compiled.execute(unit.train(), x)
        assert len(ran) == passes and ("execute" in ran) == isinstance(unit, PreactBlock)
        torch.testing.assert_close(out, unit.execute(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "model", "macs", "fabric", "compiles"),
    [
        ("rdi_net", {}, LONG, fabric_of(), True),
        ("rdi_net", {}, SHORT, fabric_of(), False),
        ("rdi_net", {"name": "cifar_preact_resnet32"}, LONG, fabric_of(), False),
        ("rdi_net", {}, LONG, fabric_of("cuda"), False),
        ("rdi_net", {}, LONG, fabric_of(world_size=2), False),
        ("static", {}, LONG, fabric_of(), True),
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
    monkeypatch.setattr(training_execution, "compiler_works", lambda: True)
    execution = chosen(build({"name": method}, **model), None, macs, fabric)
    assert execution is (compiled if compiles else by_hand)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_noticed() -> None:
    network = build({"name": "rdi_net"})
    torch.compiler.reset()
    missing = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with inductor.patch(missing):
        assert chosen(network, None, LONG, fabric_of()) is by_hand
        with pytest.raises(RecipeError, match="compiler and Python's headers, got none"):
            chosen(network, True, SHORT, fabric_of())
        assert chosen(network, False, LONG, fabric_of()) is by_hand
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_residual_block_can_be_compiled_as_a_whole() -> None:
    unit, x, weights = BasicBlock(4, 4, stride=1, stage=0), torch.randn(2, 4, 6, 6), torch.rand(2, 2)
    whole = torch.compile(blend, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(unit, x, weights), unit(x, weights))


def test_means_are_taken_by_hand_while_a_training_is_open() -> None:
    maps = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    arguments = {"macs": SHORT, "fabric": fabric_of()}
    with training_execution.training_execution(build({"name": "static"}), None, **arguments):
        inside = global_average_pool(maps)
    assert type(inside.grad_fn) is type(mean_over_space(maps).grad_fn)
    assert type(global_average_pool(maps).grad_fn) is not type(inside.grad_fn)
