"""How fast ResNet-110 with relational routers trains, all losses included, and what each choice brings.

On a CPU: passes, memory format, precision and threads, against the static network, and gates by share of the
batch against those that compute all of it, each in a process of its own, as trainings are. On a GPU: steps
run one operation after the other, with compiled units, as one CUDA graph, and several trainings side by side,
for some batch sizes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
from lightning_fabric import Fabric
from measure import Ratio, in_processes, interleave, options, random_batch, report

from sidestep.cost.macs import measure_cost
from sidestep.execution.execution import masked
from sidestep.fused.training_execution import training_execution
from sidestep.methods.rdi_net import RDI_NET, RdiNetConfig
from sidestep.methods.static import STATIC, StaticConfig
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.networks.routed import RoutedNetwork
from sidestep.routing.samplers import Noise
from sidestep.training.loop import LOG_EVERY
from sidestep.training.optimizer import TensorRates, build_optimizer
from sidestep.training.step import TrainingStep, select_parameters
from sidestep.training.training_config import Phase, TrainingConfig
from sidestep.training.update import WARM_UP_STEPS, EagerUpdate, GraphedUpdate, Update
from sidestep.types import Batch

STATIC_AIM = 1 / 0.75
PHASE = Phase(name="measured", epochs=1, lr=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to take the same step.

    Attributes:
        routed: whether the network has routers.
        precision: of the arithmetic.
        channels_last: memory format.
        compiled: whether passes are compiled; None runs units as they are printed.
        graph: whether steps are replayed as CUDA graphs.
        threads: that it may use; 0 stands for all.
        replicas: trainings side by side, each on a stream of its own.
        share: of every batch that units execute and compute, or None where they compute all of it.
    """

    routed: bool = True
    precision: str = "bf16-mixed"
    channels_last: bool = True
    compiled: bool | None = False
    graph: bool = False
    threads: int = 0
    replicas: int = 1
    share: float | None = None


OURS, STATIC_STEP = "bf16, channels_last", "static network, bf16, channels_last"
COMPILED = "bf16, channels_last, compiled"
# Aims at a share: of the step that computes all.
SHARES: dict[float, float | None] = {0.75: None, 0.5: 0.70, 0.25: None}


def by_share(share: float, *, compiled: bool = False) -> str:
    """Return what a way of gates by share is called."""
    return f"gates by share, {share:g} of the batch" + (", compiled" if compiled else "")


ON_CPU = {
    OURS: Way(),
    STATIC_STEP: Way(routed=False),
    COMPILED: Way(compiled=True),
    "bf16, channels_last, units as printed": Way(compiled=None),
    "bf16, NCHW": Way(channels_last=False),
    "float32, channels_last": Way(precision="32-true"),
    "float32, NCHW": Way(precision="32-true", channels_last=False),
    "bf16, channels_last, one thread": Way(threads=1),
    **{by_share(share): Way(share=share) for share in SHARES},
    by_share(0.5, compiled=True): Way(share=0.5, compiled=True),
}
EAGER = "eager"
ON_GPU = {
    EAGER: Way(),
    "static network, graph": Way(routed=False, graph=True),
    "compiled units": Way(compiled=True),
    "graph": Way(graph=True),
    "graph of compiled units": Way(graph=True, compiled=True),
    "graph, 2 replicas": Way(graph=True, replicas=2),
    "graph, 4 replicas": Way(graph=True, replicas=4),
    "graph of compiled units, 4 replicas": Way(graph=True, compiled=True, replicas=4),
}


def network_of(way: Way) -> RoutedNetwork:
    """Return a fresh ResNet-110, the same for every way."""
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(name="cifar_resnet110"), num_classes=10)
    return RoutedNetwork(backbone, RDI_NET.router(backbone, settings_of(way)) if way.routed else None)


def settings_of(way: Way) -> RdiNetConfig:
    """Return the settings of a way with routers."""
    return RdiNetConfig() if way.share is None else RdiNetConfig(gate_mode="share", target=way.share)


# What is opened for a training stays so until the process ends.
KEPT_OPEN = ExitStack()


def update_of(way: Way, fabric: Fabric, batch_size: int) -> Update:
    """Return what takes the steps, as `fit` does."""
    network = network_of(way).to(fabric.device)
    network = network.to(memory_format=torch.channels_last) if way.channels_last else network
    method, settings = (RDI_NET, settings_of(way)) if way.routed else (STATIC, StaticConfig())
    config = TrainingConfig(phases=[PHASE], batch_size=batch_size)
    select_parameters(network, PHASE)()
    execution = masked
    if way.compiled is not None:
        chosen = training_execution(network, way.compiled, macs=0.0, fabric=fabric)
        execution = KEPT_OPEN.enter_context(chosen)
    step = TrainingStep(
        network,
        method=method,
        settings=settings,
        cost=measure_cost(network, (32, 32)).to(fabric.device),
        config=config,
        execution=execution,
    )
    optimizer = build_optimizer(network, PHASE, config.optimizer)
    eager = EagerUpdate(step, optimizer, fabric, phase=PHASE, noise=Noise(torch.Generator(fabric.device)))
    if not way.graph:
        return eager
    TensorRates(optimizer, fabric.device).write()
    return GraphedUpdate(eager, print)


def training(way: Way, batch: Batch, accelerator: str) -> Callable[[], None]:
    """Return a call that trains every replica by one step, and waits for it."""
    fabric = Fabric(accelerator=accelerator, devices=1, precision=way.precision)  # type: ignore[arg-type]
    updates = [update_of(way, fabric, len(batch.labels)) for _ in range(way.replicas)]
    if not way.channels_last:
        batch = replace(batch, images=batch.images.contiguous())
    if not way.routed:
        batch = replace(batch, statistics=None)
    on_gpu = batch.images.is_cuda
    streams = [torch.cuda.Stream() if on_gpu else None for _ in updates]  # type: ignore[no-untyped-call]
    cores, steps = torch.get_num_threads(), count()

    def run() -> None:
        torch.set_num_threads(way.threads or cores)
        number = next(steps)
        for update, stream in zip(updates, streams, strict=True):
            with torch.cuda.stream(stream):
                update(batch, progress=0.5, seed=number, log_figures=number % LOG_EVERY == 0)
        if on_gpu:
            torch.cuda.synchronize()
        torch.set_num_threads(cores)

    return run


def start_on_cpu(name: str, size: int) -> Callable[[], object]:
    """Return a call that trains a way of a CPU by one step."""
    torch.manual_seed(0)
    return training(ON_CPU[name], random_batch(size), "cpu")


def compared(pairs: Sequence[tuple[str, str, float | None]], size: int, seconds: float) -> list[Ratio]:
    """Return a line for every pair of ways and its aim; all ways take turns, each in a process of its own."""
    names = dict.fromkeys(name for what, against, _ in pairs for name in (what, against))
    with in_processes({name: partial(start_on_cpu, name, size) for name in names}) as calls:
        ms = interleave(calls, seconds=seconds)
    return [
        Ratio(what=what, median_ms=ms[what], against=against, against_ms=ms[against], aim=aim)
        for what, against, aim in pairs
    ]


def on_cpu(chosen: Namespace) -> list[Ratio]:
    """Return the lines of a CPU, for the first batch size."""
    size = chosen.batch_sizes[0]
    aims = [(OURS, STATIC_STEP, STATIC_AIM), (COMPILED, STATIC_STEP, STATIC_AIM)]
    shares = [(by_share(share), OURS, aim) for share, aim in SHARES.items()]
    shares.append((by_share(0.5, compiled=True), COMPILED, SHARES[0.5]))
    known = (OURS, STATIC_STEP, COMPILED, *(name for name, _, _ in shares))
    groups: list[list[tuple[str, str, float | None]]] = [
        [*aims, (COMPILED, OURS, None)],
        [(name, OURS, None) for name in ON_CPU if name not in known],
        shares,
    ]
    return [line for group in groups for line in compared(group, size, chosen.seconds)]


def on_gpu(chosen: Namespace) -> Iterator[list[Ratio]]:
    """Yield the lines of a GPU for every batch size, without and with compiled units, which take minutes.

    Replicas count as so many steps.
    """
    for compiled in (False, True):
        ways = {name: way for name, way in ON_GPU.items() if way.compiled is compiled or name == EAGER}
        for size in chosen.batch_sizes:
            batch = random_batch(size, "cuda")
            calls = {name: training(way, batch, "cuda") for name, way in ways.items()}
            for call in calls.values():
                for _ in range((WARM_UP_STEPS + 1) * LOG_EVERY):  # both kinds of step are recorded then
                    call()
            ms = interleave(calls, seconds=chosen.seconds)
            yield [_line(name, way, size, ms) for name, way in ways.items()]


def _line(name: str, way: Way, size: int, ms: dict[str, float]) -> Ratio:
    each = ms[name] / way.replicas
    what = f"batch {size}, {name}: {1000 * size / each:,.0f} images/s"
    return Ratio(what=what, median_ms=each, against=EAGER, against_ms=ms[EAGER], aim=None)


def _more(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256], help="images per step")


def main() -> None:
    chosen = options("Training speed of ResNet-110 with relational routers", seconds=240.0, more=_more)
    torch.manual_seed(0)
    if torch.cuda.is_available():
        lines: list[Ratio] = []
        # Whoever has less time than compilers take keeps the lines that were in by then.
        for more in on_gpu(chosen):
            report("Training steps of RDI-Net-110 on a GPU", lines := lines + more, chosen)
        return
    title = f"Training steps of RDI-Net-110, batch {chosen.batch_sizes[0]}, on a CPU"
    report(title, on_cpu(chosen), chosen)


if __name__ == "__main__":
    main()
