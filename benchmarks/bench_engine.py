"""What skipping saves on a CPU: the engine on routed networks against the static origin in good runtimes.

Networks have random weights and relational routers that compute at every unit; the routers' biases are set
so that every unit is executed by a given share of the images. A static rival leaves nothing out and has no
routers. With --int8 the engine runs plans on bytes, beside static networks in INT8 and in both other
precisions: the best of all is what counts.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from measure import Ratio, difference, interleave, options, report
from sidestep_engine import Engine
from torch import Tensor, nn

from sidestep.cost.macs import measure_cost
from sidestep.evaluation.bench import batches_of
from sidestep.evaluation.rivals import (
    Runner,
    export_onnx,
    int8_networks,
    int8_runners,
    pytorch_input,
    static_runners,
)
from sidestep.execution.prepare import Precision, cast, prepare
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.plan.format import Plan, lists_of_ops, save_plan
from sidestep.plan.from_network import PlanCard, export_plan
from sidestep.quantisation.byte_plan import Layout, byte_plan, made_on_bytes, spread_out
from sidestep.quantisation.ranges import calibrated, maps_read
from sidestep.routing.samplers import Sample, argmax
from sidestep.types import Decisions

ROUTERS_AIM = 0.08
# Of everything executed on bytes, beside the best static runtime.
WHOLE_AIM = 1.05
# Linear layers with fewer weights stay real, as in `sidestep export --precision int8`.
LARGE_LINEAR = 1 << 15
CALIBRATION_IMAGES = 32

Held = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, and how long its engine may take as a share of the best static runtime.

    Attributes:
        backbone: name.
        size: height and width of the images.
        batch_sizes: images per call; the last is the largest.
        keep_rates: shares of the images that execute every unit.
        aims: largest ratio by (keep rate, batch size).
        int8_aims: the same on bytes.
        whole_aim: largest ratio of everything executed without routers.
        over_macs: what the engine may take beside the share of the MACs, where units are skipped.
    """

    backbone: str
    size: int
    batch_sizes: tuple[int, ...]
    keep_rates: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)
    aims: dict[tuple[float, int], float] = field(default_factory=dict)
    int8_aims: dict[tuple[float, int], float] = field(default_factory=dict)
    whole_aim: float | None = None
    over_macs: float | None = None


def of_timm(name: str) -> Case:
    """Return a network of photographs, all of whose units or half of them are executed."""
    return Case(
        backbone=f"timm/{name}",
        size=224,
        batch_sizes=(1, 16),
        keep_rates=(1.0, 0.5),
        whole_aim=1.1,
        over_macs=0.15,
    )


CASES = {
    "resnet110": Case(
        backbone="cifar_resnet110",
        size=32,
        batch_sizes=(1, 256),
        aims={(1.0, 1): 1.0, (1.0, 256): 1.1, (0.5, 1): 0.40, (0.5, 256): 0.62},
        int8_aims={(0.5, 1): 0.45, (0.5, 256): 0.58},
    ),
    "resnet32": Case(backbone="cifar_resnet32", size=32, batch_sizes=(1, 256)),
    "resnet50": Case(
        backbone="resnet50",
        size=224,
        batch_sizes=(1, 16),
        keep_rates=(1.0, 0.62),
        aims={(0.62, 1): 0.8, (0.62, 16): 0.8},
        int8_aims={(0.62, 1): 0.75, (0.62, 16): 0.75},
    ),
    "efficientnet": of_timm("efficientnet_lite0"),
    "mobilenet": of_timm("mobilenetv3_large_100"),
    "convnext": of_timm("convnext_atto"),
    "vit": of_timm("vit_tiny_patch16_224"),
}


def routed(case: Case) -> tuple[RoutedNetwork, Tensor]:
    """Return an RDI-Net with lively random weights, prepared, and images for it."""
    torch.manual_seed(0)
    size = (case.size, case.size)
    backbone = build_backbone(ModelConfig(name=case.backbone), num_classes=10, input_size=size)
    network = RoutedNetwork(backbone, RDI_NET.router(backbone, RdiNetConfig()))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.8)
    count = max(32, *case.batch_sizes)
    spread = torch.linspace(0.5, 1.5, count).view(-1, 1, 1, 1)
    images = torch.randn(count, 3, case.size, case.size) * spread
    return prepare(network, images[:2]), images


def set_keep_rate(network: RoutedNetwork, images: Tensor, rate: float) -> None:
    """Set the routers' biases so that every unit is executed by a share of the images, unit after unit."""
    decide = iter(network.router.decide)  # type: ignore[union-attr, arg-type]

    def sampler(scores: Tensor) -> Sample:
        margins = scores[:, 1] - scores[:, 0]
        # Nobody is at the edge where all or none execute.
        edge = {1.0: margins.min() - 1, 0.0: margins.max() + 1}.get(rate, torch.quantile(margins, 1 - rate))
        next(decide).bias[1] -= edge
        return argmax(scores - torch.stack([torch.zeros_like(edge), edge]))

    with torch.no_grad():
        network(images, sampler=sampler)


def plan_on_bytes(plan: Plan, images: Tensor) -> Plan:
    """Return a plan with all on bytes that its images reach, the first convolution and the routers too."""
    plan = spread_out(plan)
    made = made_on_bytes(plan.steps)
    ranges = calibrated(plan, made, [images])
    ops = [op for ops in lists_of_ops(plan.steps) for op in ops]
    unseen = {
        op["out"]
        for op in ops
        if op["out"] in made and any(value not in ranges.grids for value in (op["out"], *maps_read(op)))
    }
    large = {
        op["out"] for op in ops if op["op"] == "linear" and plan.tensors[op["weight"]].numel() >= LARGE_LINEAR
    }
    in_grids = {out: grid for out, grid in ranges.in_grids.items() if out in large}
    made = made_on_bytes(plan.steps, frozenset(unseen))
    return byte_plan(plan, Layout(made=made, grids=ranges.grids, in_grids=in_grids))


def calibration_images(images: Tensor) -> Tensor:
    """Return some from all parts of what is timed, so that units that some images execute are on bytes."""
    return images[:: len(images) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]


def engine_of(network: RoutedNetwork, case: Case, precision: Held, images: Tensor) -> Engine:
    """Return the engine that runs a network, by way of a plan file."""
    size = (case.size, case.size)
    card = PlanCard(
        input_size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=tuple("abcdefghij"),
        cost=measure_cost(network, size),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.plan"
        plan = export_plan(network, card)
        if precision == "int8":
            plan = plan_on_bytes(plan, calibration_images(images))
        save_plan(path, plan)
        real: Literal["auto", "float32", "bfloat16"] = "auto" if precision == "int8" else precision
        return Engine.load(path, precision=real, num_threads=torch.get_num_threads())


def engines_of(
    case: Case, precision: Held
) -> tuple[dict[str, Engine], dict[str, float], RoutedNetwork, Tensor]:
    """Return engines by name, one for every keep rate and one of the static network, and shares of MACs."""
    network, images = routed(case)
    cost, engines, shares = measure_cost(network, (case.size, case.size)), {}, {}
    for rate in case.keep_rates:
        set_keep_rate(network, images, rate)
        engines[f"keep {rate:g}"] = engine = engine_of(network, case, precision, images)
        paths = torch.from_numpy(engine(images.numpy()).options)
        weights = nn.functional.one_hot(paths, 2).float()
        fraction = float(cost.per_sample(Decisions(weights=weights)).mean() / cost.full)
        shares[f"keep {rate:g}"] = fraction
        print(
            f"{case.backbone} {precision} keep {rate:g}: {fraction:.1%} of the MACs, routers included",
            flush=True,
        )
    static = RoutedNetwork(network.backbone, None)
    engines["no routers"] = engine_of(static, case, precision, images)
    return engines, shares, network, images


def compiled_runner(backbone: nn.Module, precision: Precision) -> Runner:
    """Return PyTorch's compiler with frozen weights."""
    network = torch.compile(cast(backbone, precision), options={"freezing": True})
    return Runner(convert=pytorch_input(precision), run=network)


def rivals_of(
    network: nn.Module, onnx: bytes | None, precision: Held, images: Tensor, compiles: bool
) -> Callable[[int], dict[str, Runner]]:
    """Return what makes static runners, by name, for a batch size; beside INT8 both other precisions."""
    others: list[Precision] = ["float32", "bfloat16"] if precision == "int8" else [precision]
    quantised = int8_networks(onnx, calibration_images(images)) if precision == "int8" else {}

    def made(batch_size: int) -> dict[str, Runner]:
        rivals = {f"{name} INT8": runner for name, runner in int8_runners(quantised, batch_size).items()}
        for other in others:
            runners = static_runners(network, onnx, other, batch_size)
            if compiles:
                runners["static torch.compile"] = compiled_runner(network, other)
            suffix = f" {other}" if precision == "int8" else ""
            rivals |= {name + suffix: runner for name, runner in runners.items()}
        return rivals

    return made


def compare(case: Case, precision: Held, seconds: float, compiles: bool) -> list[Ratio]:
    """Return the engines' times at every batch size beside the best static one."""
    engines, shares, network, images = engines_of(case, precision)
    onnx = export_onnx(network.backbone, (case.size, case.size))
    rivals_for = rivals_of(network.backbone, onnx, precision, images, compiles)
    lines = []
    for batch_size in case.batch_sizes:
        rivals = rivals_for(batch_size)
        batches = batches_of(images[: len(images) // batch_size * batch_size], batch_size)
        calls = {name: _calls(engine, [b.numpy() for b in batches]) for name, engine in engines.items()}
        calls |= {name: _calls(r.run, [r.convert(batch) for batch in batches]) for name, r in rivals.items()}
        with torch.inference_mode():
            ms = interleave(calls, seconds=seconds)
        what = f"{case.backbone}, batch {batch_size}, {precision}"
        routers = Ratio(
            what=f"{what}: routers alone (keep 1 without no routers, in pairs)",
            median_ms=difference(calls["keep 1"], calls["no routers"], seconds=seconds),
            against="keep 1",
            against_ms=ms["keep 1"],
            aim=ROUTERS_AIM,
        )
        lines += [*_lines(case, what, batch_size, ms, precision, shares), routers]
    return lines


def _calls(run: Callable[..., object], inputs: Sequence[object]) -> Callable[[], object]:
    turns = cycle(inputs)
    return lambda: run(next(turns))


def _lines(
    case: Case, what: str, batch_size: int, ms: dict[str, float], precision: Held, shares: dict[str, float]
) -> list[Ratio]:
    aims = case.int8_aims if precision == "int8" else case.aims
    aim_of = {f"keep {rate:g}": aim for (rate, size), aim in aims.items() if size == batch_size}
    if case.over_macs is not None:
        aim_of |= {name: share + case.over_macs for name, share in shares.items() if share < 1}
    if (whole := WHOLE_AIM if precision == "int8" else case.whole_aim) is not None:
        aim_of["no routers"] = whole
    best = min((name for name in ms if name.startswith("static")), key=lambda name: ms[name])
    lines = [
        Ratio(
            what=f"{what}: {name}",
            median_ms=ms[name],
            against=best,
            against_ms=ms[best],
            aim=aim_of.get(name),
        )
        for name in ms
        if name != best
    ]
    return lines


def _flags(parser: ArgumentParser) -> None:
    for name in CASES:
        parser.add_argument(f"--{name}", action="store_true", help="measure this network; all without any")
    parser.add_argument("--int8", action="store_true", help="on bytes alone, beside the other precisions")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes minutes")


def main() -> None:
    chosen = options("The engine against static networks in good runtimes", seconds=20.0, more=_flags)
    cases = [case for name, case in CASES.items() if getattr(chosen, name)] or list(CASES.values())
    precisions: list[Held] = ["int8"] if chosen.int8 else ["float32", "bfloat16"]
    lines = [
        line
        for case in cases
        for p in precisions
        for line in compare(case, p, chosen.seconds, chosen.compile)
    ]
    report("The engine against static networks in the best runtimes, CPU", lines, chosen)


if __name__ == "__main__":
    main()
