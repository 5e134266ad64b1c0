"""How much longer a step of a gate-based method takes than the static ResNet-110's, and the rank loss' part.

A step is what `fit` does with a batch: forward pass, all losses, backward pass, SGD; 256 images of 32x32,
bf16 autocast, channels_last, routers of the papers' widths.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from lightning_fabric import Fabric
from measure import Ratio, interleave, options, random_batch, report

from sidestep.cost.macs import measure_cost
from sidestep.fused.training_execution import training_execution
from sidestep.layers.residual import Mix
from sidestep.losses.paths import rank_loss
from sidestep.methods.codinet import CODINET, CoDiNetConfig
from sidestep.methods.convnet_aig import CONVNET_AIG, ConvNetAigConfig
from sidestep.methods.method import Method
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig, SrmConfig
from sidestep.methods.skipnet import SKIPNET, SkipNetConfig
from sidestep.methods.static import STATIC, StaticConfig
from sidestep.networks.families import CifarResNetSettings
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.routing.relational import RelationalConfig
from sidestep.routing.samplers import Noise
from sidestep.training.loop import LOG_EVERY
from sidestep.training.optimizer import build_optimizer
from sidestep.training.step import TrainingStep, select_parameters
from sidestep.training.training_config import Phase, TrainingConfig
from sidestep.training.update import EagerUpdate
from sidestep.types import Batch

BATCH_SIZE, NUM_UNITS = 256, 54
STEP_AIM, RANK_AIM = 1.4, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A method whose step is timed.

    Attributes:
        method: whose router, sampler and losses.
        settings: its settings.
        mix: how units blend.
        views: of every image in the batch.
    """

    method: Method[Any]
    settings: Any
    mix: Mix = "output"
    views: int = 1


VANILLA = RdiNetConfig(router=RelationalConfig(gamma=0), srm=SrmConfig(alpha=0))
CASES = {
    "RDI-Net, soft gates": Case(method=RDI_NET, settings=RdiNetConfig(gate_mode="soft")),
    "RDI-Net, hard gates": Case(method=RDI_NET, settings=RdiNetConfig(gate_mode="hard")),
    "vanilla gates": Case(method=RDI_NET, settings=VANILLA),
    "ConvNet-AIG": Case(method=CONVNET_AIG, settings=ConvNetAigConfig(), mix="branch"),
    "CoDiNet, four views": Case(method=CODINET, settings=CoDiNetConfig(num_units=31), views=4),
    "SkipNet, recurrent gate, supervised": Case(method=SKIPNET, settings=SkipNetConfig()),
    "SkipNet, recurrent gate, hybrid": Case(
        method=SKIPNET, settings=SkipNetConfig(decisions="sampled", policy_weight=2.56)
    ),
    "SkipNet, FFGate-II, supervised": Case(method=SKIPNET, settings=SkipNetConfig(gate="feedforward2")),
}


# What is opened for a training stays so until the process ends.
KEPT_OPEN = ExitStack()


def training_step(case: Case, batch: Batch) -> Callable[[], None]:
    """Return a call that trains a fresh ResNet-110 on the batch once more."""
    torch.manual_seed(0)
    method, settings = case.method, case.settings
    backbone = build_backbone(
        ModelConfig(name="cifar_resnet110", settings=CifarResNetSettings(mix=case.mix)), num_classes=10
    )
    network = method.network(backbone, method.router(backbone, settings))
    network = network.to(memory_format=torch.channels_last)
    phase = Phase(name="measured", epochs=1, lr=0.01)
    config = TrainingConfig(phases=[phase], batch_size=BATCH_SIZE, precision="bf16-mixed")
    select_parameters(network, phase)()
    optimizer = build_optimizer(network, phase, config.optimizer)
    cost = measure_cost(network, (32, 32))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    execution = KEPT_OPEN.enter_context(training_execution(network, False, macs=0.0, fabric=fabric))
    step = TrainingStep(
        network, method=method, settings=settings, cost=cost, config=config, execution=execution
    )
    update = EagerUpdate(step, optimizer, fabric, phase=phase, noise=Noise(torch.Generator()))
    if method.statistics(settings) is None:
        batch = replace(batch, statistics=None)
    batch = replace(batch, views=case.views)
    steps = count()

    def run() -> None:
        number = next(steps)
        update(batch, progress=0.5, seed=number, log_figures=number % LOG_EVERY == 0)

    return run


def rank_loss_step(batch: Batch) -> Callable[[], None]:
    """Return a call of the rank loss, forward and backward, on soft paths of all units."""
    statistics = batch.statistics
    assert statistics is not None  # it was drawn with them
    paths = torch.rand(BATCH_SIZE, NUM_UNITS, requires_grad=True)

    def run() -> None:
        paths.grad = None
        torch.autograd.backward(rank_loss(paths, statistics))

    return run


def main() -> None:
    chosen = options("Training steps on ResNet-110 against the static one's", seconds=240.0)
    torch.manual_seed(0)
    batch = random_batch(BATCH_SIZE)
    calls = {name: training_step(case, batch) for name, case in CASES.items()}
    calls["static"] = training_step(Case(method=STATIC, settings=StaticConfig()), batch)
    calls["rank"] = rank_loss_step(batch)
    ms = interleave(calls, seconds=chosen.seconds)
    lines = [
        Ratio(
            what=f"step, {name}",
            median_ms=ms[name],
            against="static step",
            against_ms=ms["static"],
            aim=STEP_AIM,
        )
        for name in CASES
    ]
    lines.append(
        Ratio(
            what="rank loss, forward and backward",
            median_ms=ms["rank"],
            against="step, RDI-Net, soft gates",
            against_ms=ms["RDI-Net, soft gates"],
            aim=RANK_AIM,
        )
    )
    report("Training steps on ResNet-110, batch 256, bf16 autocast, CPU", lines, chosen)


if __name__ == "__main__":
    main()
