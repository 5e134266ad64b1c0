"""Whether skipping half of the blocks saves time in PyTorch: gathered ResNet-110 against the static one.

Both are prepared (BatchNorm folded, channels_last). The relational routers compute at every unit as in a
trained network, but the decisions come from a table of coin tosses, one per image and unit.
"""

from __future__ import annotations

from itertools import cycle

import torch
from measure import Ratio, interleave, options, report
from torch import Tensor

from sidestep.execution.execution import gathered
from sidestep.execution.prepare import prepare
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.samplers import Sample, argmax

AIMS = {256: 0.66, 1: 1.0}
NUM_UNITS, NUM_PATHS = 54, 32


class Coins:
    """The sampler of evaluation, on logits drawn beforehand: it costs what arg-max costs and keeps half."""

    def __init__(self, batch_size: int) -> None:
        self._logits = cycle(torch.randn(NUM_PATHS * NUM_UNITS, batch_size, 2).unbind())

    def __call__(self, logits: Tensor) -> Sample:
        return argmax(next(self._logits))


def resnet110() -> RoutedNetwork:
    """Return ResNet-110 with relational routers of width 256, prepared."""
    backbone = build_backbone(ModelConfig(name="cifar_resnet110"), num_classes=10)
    network = RoutedNetwork(backbone, RDI_NET.router(backbone, RdiNetConfig()))
    return prepare(network, torch.randn(2, 3, 32, 32))


def compare(network: RoutedNetwork, batch_size: int, seconds: float) -> Ratio:
    """Return gathered against static execution at one batch size."""
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    coins = Coins(batch_size)
    calls = {
        "gathered": lambda: network(images, sampler=coins, execution=gathered),
        "static": lambda: network.backbone(images),
    }
    with torch.inference_mode():
        ms = interleave(calls, seconds=seconds)
    return Ratio(
        what=f"gathered, batch {batch_size}",
        median_ms=ms["gathered"],
        against="static",
        against_ms=ms["static"],
        aim=AIMS[batch_size],
    )


def main() -> None:
    chosen = options("Gathered execution at keep rate 0.5 against the static network", seconds=30.0)
    torch.manual_seed(0)
    network = resnet110()
    lines = [compare(network, batch_size, chosen.seconds) for batch_size in AIMS]
    report("Gathered execution of ResNet-110 at keep rate 0.5, float32, CPU", lines, chosen)


if __name__ == "__main__":
    main()
