"""Networks cut into segments against the static network, in the same runtime: ONNX Runtime, and OpenVINO.

Every run that is named is exported (`--to onnx` and `--to onnx-if`) and runs images of its test split in the
runner that lies beside its segments, all in one process, float32. ONNX Runtime has one pool of threads for
everything here. The aim is the MACs that the images run, as a share of those of the static network that is
timed, plus 0.10; that network has the last exit alone, while the price list has all. What is computed is
compared with masked PyTorch, frozen alike; how far logits are from its is said as a share of the largest
one, since float32 rounds in proportion. `--profile` says beside it where the time of a batch goes.
"""

from __future__ import annotations

import importlib.util
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measure import Ratio, interleave, options, publish, table
from torch import Tensor

from sidestep.cost.counting import counted_macs
from sidestep.evaluation.bench import batches_of
from sidestep.evaluation.rivals import export_onnx, openvino_model, openvino_runner
from sidestep.execution.prepare import prepare
from sidestep.runs.export import export_run
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.timing import test_images
from sidestep.targets.freezing import FrozenSampler, without_exits

SLACK = 0.10
RUNTIMES = ("onnxruntime", "openvino")
# Of a branch, in the profile.
REPEATS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run with everything that it was exported as.

    Attributes:
        name: of the run.
        opened: the run.
        folder: of its segments.
        single: the file with `If`.
        static: the static network as ONNX.
        static_macs: its multiply-adds for an image.
        images: of the test split.
        told: what the exports said.
    """

    name: str
    opened: OpenedRun
    folder: Path
    single: Path
    static: bytes
    static_macs: float
    images: Tensor
    told: str


@contextmanager
def exported(run: Path, chosen: Namespace, count: int) -> Iterator[Case]:
    """Yield a run in all its forms."""
    opened = open_run(run, "best")
    images = test_images(opened, chosen.source, count, opened.exit_rule)
    network = prepare(opened.network, images[:2]).static
    static = export_onnx(network, opened.input_size)
    assert static is not None  # both runtimes are here
    with tempfile.TemporaryDirectory() as made:
        settings = {"segments": chosen.segments, "source": chosen.source}
        folder = export_run(run, Path(made) / "segments", to="onnx", **settings)
        single = export_run(run, Path(made) / "if.onnx", to="onnx-if", **settings)
        yield Case(
            name=run.name, opened=opened, folder=folder.path, single=single.path, static=static,
            static_macs=counted_macs(network, images[:1])[0],
            images=images, told=f"{run.name}: {folder.summary}",
        )  # fmt: skip


def segments_of(case: Case, runtime: str) -> Any:
    """Return the runner in the folder of a case."""
    file = case.folder / "sidestep_segments.py"
    spec = importlib.util.spec_from_file_location("sidestep_segments", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Segments(runtime=runtime, num_threads=torch.get_num_threads())


def single_call(model: bytes, runtime: str, batch_size: int) -> Callable[[Any], object]:
    """Return a call of one graph, the static network or the one with `If`."""
    if runtime == "openvino":
        request = openvino_model(model, "float32", batch_size).create_infer_request()
        return lambda images: request.infer([images], share_inputs=True)
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.use_per_session_threads = False
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def static_call(case: Case, runtime: str, batch_size: int) -> Callable[[Any], object]:
    """Return the static network at its best: in OpenVINO a batch runs in several streams."""
    if runtime == "onnxruntime":
        return single_call(case.static, runtime, batch_size)
    runner = openvino_runner(case.static, "float32", batch_size)
    return lambda images: runner.run(runner.convert(torch.from_numpy(images)))


def compare(case: Case, runtime: str, batch_size: int, seconds: float) -> list[Ratio]:
    """Return segments, and at batch 1 the graph with `If`, against the static network."""
    segments = segments_of(case, runtime)
    batches = [batch.contiguous().numpy() for batch in batches_of(case.images, batch_size)]
    answers = [segments(batch) for batch in batches]
    macs = np.concatenate([answer.macs for answer in answers]).mean()
    share = macs / case.static_macs
    what = f"batch {batch_size}, {share:.1%} of the MACs, {macs / case.opened.cost.full:.1%} of the price"
    static = static_call(case, runtime, batch_size)
    calls = {"segments": segments, "static": static}
    if batch_size == 1:
        calls["onnx-if"] = single_call(case.single.read_bytes(), runtime, 1)

    def all_batches(call: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: [call(batch) for batch in batches]

    ms = interleave({name: all_batches(call) for name, call in calls.items()}, seconds=seconds)
    return [
        Ratio(
            what=f"{case.name}: {name}, {runtime}, {what}",
            median_ms=ms[name] / len(batches),
            against="static",
            against_ms=ms["static"] / len(batches),
            aim=share + SLACK if name == "segments" else None,
        )
        for name in calls
        if name != "static"
    ]


def parity(case: Case, runtime: str) -> str:
    """Return how far segments are from masked PyTorch, alone and in one batch."""
    segments, opened = segments_of(case, runtime), case.opened
    frozen = segments.route["frozen"]
    sampler = FrozenSampler({int(unit): option for unit, option in frozen["units"].items()})
    rule = without_exits(opened.exit_rule, frozen["exits"])
    with torch.inference_mode():
        wanted = opened.network(case.images, sampler=sampler, rule=rule)
    whole = segments(case.images.numpy())
    alone = [segments(image[None].numpy()) for image in case.images]
    said = []

    def joined(what: str) -> np.ndarray:
        return np.concatenate([getattr(one, what) for one in alone])

    for name, logits, exits, paths in (
        ("one batch", whole.logits, whole.exits, whole.options),
        ("batch 1", joined("logits"), joined("exits"), joined("options")),
    ):
        other = np.zeros(len(logits), bool)
        if wanted.decisions.exits is not None:
            other |= exits != wanted.decisions.exits.argmax(dim=1).numpy()
        if paths.shape[1]:
            other |= ((paths >= 0) & (paths != wanted.decisions.paths().numpy())).any(axis=1)
        furthest = np.abs(logits - wanted.logits.numpy())[~other].max()
        largest = wanted.logits.abs().max().item()
        said.append(
            f"{name}: {int(other.sum())} of {len(logits)} images decide otherwise, logits within "
            f"{furthest / largest:.1e} of the largest, {largest:.3g}"
        )
    return f"- {case.name}, {runtime}: {'; '.join(said)}"


def profile(case: Case, runtime: str, batch_size: int) -> str:
    """Return a table of what every branch takes for a whole batch, and for how many images it runs."""
    segments, rows = segments_of(case, runtime), []
    seen: dict[str, list[float]] = {}
    images: dict[str, int] = {}
    inner = segments.graph

    def told(component: str, count: int, call: Callable[[], Any]) -> Any:
        begin = perf_counter()
        said = call()
        seen.setdefault(component, []).append(1e3 * (perf_counter() - begin))
        images[component] = images.get(component, 0) + count
        return said

    def timed(component: str, alone: bool = False) -> Any:
        graph = inner(component, alone)

        def run(given: Any, wanted: Any) -> Any:
            count = len(next(iter(given.values())))
            return told(component, count, lambda: graph(given, wanted))

        def bind(given: Any, wanted: Any) -> Callable[[], Any]:
            call = graph.bind(given, wanted)
            return lambda: told(component, 1, call)

        run.bind = bind  # type: ignore[attr-defined]
        return run

    batches = [batch.contiguous().numpy() for batch in batches_of(case.images, batch_size)]
    segments.graph, whole = timed, []
    for batch in batches:  # makes the graphs
        segments(batch)
    seen.clear()
    images.clear()
    for _ in range(REPEATS):
        for batch in batches:
            begin = perf_counter()
            segments(batch)
            whole.append(1e3 * (perf_counter() - begin))
    inside = sum(sum(times) for times in seen.values()) / len(whole)
    for name, times in seen.items():
        calls = len(times) / len(whole)
        rows.append([name, f"{calls:.2f}", f"{images[name] / len(times):.1f}", f"{median(times):.3f}"])
    rows.append(["host, beside the graphs", "", "", f"{sum(whole) / len(whole) - inside:.3f}"])
    names = [f"{case.name}, {runtime}, batch {batch_size}", "calls a batch", "images a call", "ms a call"]
    return table(names, rows)


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")
    parser.add_argument("--segments", type=int, help="that an image runs at most (as in export)")
    parser.add_argument("--batch-sizes", default="1,32", help="images per call (default: %(default)s)")
    parser.add_argument("--images", type=int, default=256, help="of the test split (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")


def main() -> None:
    """Compare, print and write."""
    chosen = options(__doc__ or "", seconds=20, more=arguments)
    sizes = [int(size) for size in chosen.batch_sizes.split(",")]
    lines: list[Ratio] = []
    told, same, profiles = [], [], []
    for run in chosen.runs:
        with exported(run, chosen, chosen.images) as case:
            told.append(f"- {case.told}")
            for runtime in RUNTIMES:
                same.append(parity(case, runtime))
                for size in sizes:
                    lines += compare(case, runtime, size, chosen.seconds)
                    if chosen.profile:
                        profiles.append(profile(case, runtime, size))
    names = ["what", "median, ms", "against, ms", "ratio", "aim", "met"]
    rows = table(names, [line.cells() for line in lines])
    parts = [
        rows,
        "Exports:\n\n" + "\n".join(told),
        "Against masked PyTorch:\n\n" + "\n".join(same),
        *profiles,
    ]
    publish("Segments against the static network", parts, chosen)


if __name__ == "__main__":
    main()
