"""How much longer a step of RDI-Net-110 takes than a step of the static ResNet-110, and the rank loss' part.

A step is what `fit` does with a batch: forward pass, all losses, backward pass, SGD; 256 images of 32x32,
bf16 autocast, channels_last, relational routers of width 256.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from measure import Ratio, interleave, options, report

from sidestep.backbones.build import ModelConfig, build_backbone
from sidestep.cost.macs import measure_cost
from sidestep.data.histogram import color_histogram
from sidestep.losses.paths import rank_loss
from sidestep.methods.method import Method
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig
from sidestep.methods.static import STATIC, StaticConfig
from sidestep.routing.samplers import Noise
from sidestep.training.config import Phase, TrainingConfig
from sidestep.training.loop import NOTED_EVERY
from sidestep.training.memory import keep_freed_memory
from sidestep.training.optimizer import build_optimizer
from sidestep.training.step import TrainingStep, select_parameters
from sidestep.types import Batch

BATCH_SIZE, NUM_UNITS = 256, 54
STEP_AIM, RANK_AIM = 1.4, 0.05


def random_batch() -> Batch:
    """Return random images with labels and the paper's statistics, (256, 192)."""
    pixels = torch.randint(256, (BATCH_SIZE, 3, 32, 32), dtype=torch.uint8)
    return Batch(
        images=(pixels / 127.5 - 1).to(memory_format=torch.channels_last),
        labels=torch.randint(10, (BATCH_SIZE,)),
        statistics=color_histogram(pixels),
    )


def training_step(method: Method[Any], settings: Any, batch: Batch) -> Callable[[], None]:
    """Return a call that trains a fresh ResNet-110 on the batch once more."""
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(name="cifar_resnet110"), num_classes=10)
    network = method.network(backbone, method.router(backbone, settings))
    network = network.to(memory_format=torch.channels_last)
    phase = Phase(name="measured", epochs=1, lr=0.01)
    config = TrainingConfig(phases=[phase], batch_size=BATCH_SIZE, precision="bf16-mixed")
    select_parameters(network, phase.train)()
    optimizer = build_optimizer(network, phase, config.optimizer)
    cost = measure_cost(network, (32, 32))
    step = TrainingStep(network, method=method, settings=settings, cost=cost, config=config)
    noise = Noise(torch.Generator().manual_seed(0))
    statistics = batch.statistics if method.statistics(settings) is not None else None

    steps = count()

    def run() -> None:
        step.begin(phase, 0.5, noise, noted=next(steps) % NOTED_EVERY == 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, _ = step(batch.images, batch.labels, statistics)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return run


def rank_loss_step(batch: Batch) -> Callable[[], None]:
    """Return a call of the rank loss, forward and backward, on soft paths of all units."""
    paths = torch.rand(BATCH_SIZE, NUM_UNITS, requires_grad=True)

    def run() -> None:
        paths.grad = None
        rank_loss(paths, batch.statistics).backward()

    return run


def main() -> None:
    chosen = options("RDI-Net-110's training step against the static one's", seconds=120.0)
    torch.manual_seed(0)
    keep_freed_memory()
    batch = random_batch()
    calls = {
        "static": training_step(STATIC, StaticConfig(), batch),
        "soft": training_step(RDI_NET, RdiNetConfig(gate_mode="soft"), batch),
        "hard": training_step(RDI_NET, RdiNetConfig(gate_mode="hard"), batch),
        "rank": rank_loss_step(batch),
    }
    ms = interleave(calls, seconds=chosen.seconds)
    lines = [
        Ratio(
            what=f"step, {mode} gates",
            median_ms=ms[mode],
            against="static step",
            against_ms=ms["static"],
            aim=STEP_AIM,
        )
        for mode in ("soft", "hard")
    ]
    lines.append(
        Ratio(
            what="rank loss, forward and backward",
            median_ms=ms["rank"],
            against="step, soft gates",
            against_ms=ms["soft"],
            aim=RANK_AIM,
        )
    )
    report("Training step of RDI-Net-110, batch 256, bf16 autocast, CPU", lines, chosen)


if __name__ == "__main__":
    main()
