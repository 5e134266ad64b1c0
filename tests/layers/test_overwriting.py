"""Nothing that computes features destroys its input, where it is not in inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.execution.execution import blend, gathered
from sidestep.fused.training_execution import by_hand
from sidestep.internals import tree_leaves
from sidestep.layers.dense import DenseBlock, DenseLayer, bottleneck, concat, conv_basic, resize
from sidestep.layers.exit_head import AttachedHead, ExitHead
from sidestep.layers.norm import CIFAR
from sidestep.layers.overwriting import may_overwrite
from sidestep.layers.pool import global_average_pool
from sidestep.layers.preact import PreactBlock, PreactBottleneck
from sidestep.layers.residual import BasicBlock, BlockConfig, Bottleneck, HalfBlock
from sidestep.layers.shortcut import PadShortcut, PoolShortcut
from sidestep.layers.squeeze_excite import SqueezeExcite
from sidestep.layers.unit import Unit
from sidestep.routing.chance import ChanceRouter
from sidestep.routing.feedforward import FeedForwardRouter
from sidestep.routing.gate import GateConfig, GateRouter
from sidestep.routing.halting_units import HaltingRouter
from sidestep.routing.policy import LastUnitsRouter, PolicyRouter
from sidestep.routing.recurrent import RecurrentRouter
from sidestep.routing.relational import RelationalConfig, RelationalRouter
from sidestep.routing.router import ConstantRouter, Router
from tests.doubles import enliven

SHAPE = {"stride": 1, "stage": 0}
UNITS: dict[str, Callable[[], Unit]] = {
    "basic": partial(BasicBlock, 8, 8, **SHAPE),
    "basic that halves": partial(BasicBlock, 8, 16, stride=2, stage=0),
    "projecting": partial(BasicBlock, 8, 16, stride=2, stage=0, config=BlockConfig(shortcut="B")),
    "linear skip": partial(
        BasicBlock, 8, 16, stride=2, stage=0, config=BlockConfig(shortcut="B", skip="linear")
    ),
    "own skip": partial(BasicBlock, 8, 16, stride=2, stage=0, config=BlockConfig(skip="own")),
    "branch mix": partial(BasicBlock, 8, 8, **SHAPE, config=BlockConfig(mix="branch")),
    "squeezing": partial(BasicBlock, 8, 8, **SHAPE, config=BlockConfig(se_ratio=2)),
    "half": partial(HalfBlock, 8, 8, **SHAPE),
    "bottleneck": partial(Bottleneck, 8, 8, **SHAPE),
    "preact": partial(PreactBlock, 8, 8, **SHAPE),
    "first preact": partial(PreactBlock, 8, 8, **SHAPE, first=True),
    "preact bottleneck": partial(PreactBottleneck, 8, 8, **SHAPE),
}
LAYERS: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "squeeze and excitation": partial(SqueezeExcite, 8, 2),
    "pad": partial(PadShortcut, 8, 16, 2),
    "pool": partial(PoolShortcut, 8, 16, 2, zeros="both"),
    "conv basic": partial(conv_basic, 8, 8, 3),
    "dense bottleneck": partial(bottleneck, 8, 8, width=2),
    "dense": lambda: DenseLayer(conv_basic(8, 4, 3)),
    "dense block": lambda: DenseBlock([DenseLayer(conv_basic(8, 4, 3))], conv_basic(12, 4, 1)),
    "resize": lambda: partial(resize, size=(6, 6)),
    "concat": lambda: lambda x: concat(x, x),
    "mean": lambda: global_average_pool,
    "activation": lambda: CIFAR.activate,
    "exit head": partial(ExitHead, 8, 8, 5),
    "attached head": partial(AttachedHead, 8, 8, 5, tokens=False),
}
ROUTERS: dict[str, Callable[[], Router]] = {
    "relational": partial(RelationalRouter, [8] * 3, [0] * 3, RelationalConfig(dim=8)),
    "by likeness": partial(RelationalRouter, [8] * 3, [0] * 3, RelationalConfig(dim=8, gamma="auto")),
    "without BatchNorm": partial(
        RelationalRouter, [8] * 3, [0] * 3, RelationalConfig(dim=8, batch_norm=False)
    ),
    "gate": partial(GateRouter, [8] * 3),
    "bare gate": partial(GateRouter, [8] * 3, GateConfig(batch_norm=False)),
    "recurrent": partial(RecurrentRouter, [8] * 3),
    "FFGate-I": partial(FeedForwardRouter, [8] * 3, deep=True),
    "FFGate-II": partial(FeedForwardRouter, [8] * 3, deep=False),
    "constant": lambda: ConstantRouter.keep([0.5] * 3),
    "chance": partial(ChanceRouter, [0.5] * 3),
    "policy": lambda: PolicyRouter(policy()),
    "last units": lambda: LastUnitsRouter(PolicyRouter(policy()), 2),
    "halting": partial(HaltingRouter, [8] * 3, [0] * 3, spatial=False),
    "halting positions": partial(HaltingRouter, [8] * 3, [0] * 3, spatial=True),
}


def policy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))


@pytest.fixture(params=["gradients", "no_grad"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.no_grad() if request.param == "no_grad" else nullcontext():
        yield


def lively(make: Callable[[], Any], *, training: bool) -> Any:
    torch.manual_seed(0)
    made = make()
    if isinstance(made, nn.Module):
        enliven(made)
        made.train(training)
    return made


def unchanged(function: Callable[[Tensor], Any]) -> None:
    x = torch.randn(3, 8, 8, 8).to(memory_format=torch.channels_last)
    before = x.clone()
    function(x)
    assert torch.equal(x, before)


TRAINING = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


@pytest.mark.usefixtures("mode")
@TRAINING
@pytest.mark.parametrize("kind", UNITS)
def test_units_leave_their_input(kind: str, training: bool) -> None:
    unit = lively(UNITS[kind], training=training)
    weights = torch.rand(3, unit.num_options).softmax(dim=1)
    hard = torch.eye(unit.num_options)[[0, -1, 0]]
    unchanged(lambda x: [unit.run(option, x) for option in range(unit.num_options)])
    unchanged(unit.skip)
    unchanged(unit.execute)
    unchanged(lambda x: blend(unit, x, weights))
    unchanged(lambda x: by_hand.run(unit, x, weights))
    if not training:
        unchanged(lambda x: gathered.run(unit, x, hard))


@pytest.mark.usefixtures("mode")
@TRAINING
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_leave_their_input(kind: str, training: bool) -> None:
    unchanged(lively(LAYERS[kind], training=training))


@pytest.mark.usefixtures("mode")
@TRAINING
@pytest.mark.parametrize("kind", ROUTERS)
def test_routers_leave_features_and_state(kind: str, training: bool) -> None:
    router = lively(ROUTERS[kind], training=training)
    images = torch.randn(3, 3, 8, 8)
    kept = images.clone()
    state = router.begin(images)
    for unit in range(3):
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        before = [leaf.clone() for leaf in tensors]

        def ask(x: Tensor, unit: int = unit) -> None:
            nonlocal state
            _, state = router(unit, x, state)

        unchanged(ask)
        assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert torch.equal(images, kept)


def test_only_what_inference_mode_has_made_may_be_overwritten() -> None:
    outside = torch.ones(1)
    assert not may_overwrite(outside)
    with torch.no_grad():
        assert not may_overwrite(torch.ones(1))
    with torch.inference_mode():
        inside = torch.ones(1)
        assert may_overwrite(inside)
        assert not may_overwrite(inside, outside)
    assert not may_overwrite(inside)
