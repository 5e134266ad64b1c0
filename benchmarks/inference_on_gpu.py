"""Inference of ResNet-110: static, as a CUDA graph and compiled, beside half of it, routed per image."""

from __future__ import annotations

from argparse import ArgumentParser

import torch
from measure import options, publish, random_batch, table
from torch import Tensor

from sidestep.evaluation.bench import bench_network
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import Router


class CoinRouter(Router):
    """Executes a unit for about half of the images, which differ from unit to unit."""

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        margin = torch.sin(1e4 * features.float().mean(dim=(1, 2, 3)) + unit)
        return torch.stack([-margin, margin], dim=1), None


def _more(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32, 256], help="images per call")
    parser.add_argument("--model", default="cifar_resnet110", help="backbone (default: %(default)s)")


def main() -> None:
    chosen = options("Inference of a network with half of its units executed", seconds=5.0, more=_more)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = build_backbone(ModelConfig(name=chosen.model), num_classes=10)
    result = bench_network(
        RoutedNetwork(backbone, CoinRouter()).to(device).eval(),
        input_size=(32, 32),
        batch_sizes=chosen.batch_sizes,
        images=random_batch(max(chosen.batch_sizes), device).images,
        seconds=chosen.seconds,
    )
    names = ["precision", "batch", "runtime", "median, ms", "over the best static"]
    rows = [
        [
            row.precision,
            str(row.batch_size),
            row.runtime,
            f"{row.median_ms:.3f}",
            f"{row.ratio_to_best_static:.2f}",
        ]
        for row in result.rows
    ]
    said = "A coin decides per image and unit, so half of the units are executed, without a router's cost."
    publish(f"Inference of {chosen.model} on {device}", [said, table(names, rows)], chosen)


if __name__ == "__main__":
    main()
