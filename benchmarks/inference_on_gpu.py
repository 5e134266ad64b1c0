"""Inference of ResNet-110: static, as a CUDA graph and compiled, beside half of it, routed per image."""

from __future__ import annotations

from argparse import ArgumentParser

import torch
from measure import options, publish, random_batch, table
from torch import Tensor

from sidestep.evaluation.bench import BenchPrecision, bench_network
from sidestep.evaluation.rivals import Runner, pytorch_input
from sidestep.execution.prepare import Precision, cast, prepare
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.router import Router

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


class CoinRouter(Router):
    """Executes a unit for about half of the images, which differ from unit to unit."""

    def forward(self, unit: int, features: Tensor, state: None) -> tuple[Tensor, None]:
        margin = torch.sin(1e4 * features.float().mean(dim=(1, 2, 3)) + unit)
        return torch.stack([-margin, margin], dim=1), None


def compiled(network: RoutedNetwork, images: Tensor) -> dict[BenchPrecision, dict[str, Runner]]:
    """Return the static network as torch.compile makes it, replayed as CUDA graphs, for every precision."""
    static = prepare(network, images[:2]).static
    return {
        precision: {
            "static pytorch, compiled": Runner(
                convert=pytorch_input(precision),
                run=torch.compile(cast(static, precision), mode="reduce-overhead"),
            )
        }
        for precision in PRECISIONS
    }


def _more(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32, 256], help="images per call")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes")
    parser.add_argument("--model", default="cifar_resnet110", help="backbone (default: %(default)s)")


def main() -> None:
    chosen = options("Inference of a network with half of its units executed", seconds=5.0, more=_more)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = build_backbone(ModelConfig(name=chosen.model), num_classes=10)
    network = RoutedNetwork(backbone, CoinRouter()).to(device).eval()
    images = random_batch(max(2, *chosen.batch_sizes), device).images
    result = bench_network(
        network,
        input_size=(32, 32),
        batch_sizes=chosen.batch_sizes,
        images=images,
        precisions=PRECISIONS,
        seconds=chosen.seconds,
        extra=compiled(network, images) if chosen.compile else None,
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
