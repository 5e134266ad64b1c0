"""A calibrated cascade in the engine against its members alone in every static runtime, and in INT8.

Accuracy is that of the whole test split: of the engine, whose decisions are compared with those of masked
PyTorch, and of every member. In INT8 the engine's plan is quantised as `sidestep export --precision int8`
does it, and members by OpenVINO after training (NNCF), on images of the validation split; members are left
out where NNCF is not installed.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from bench_engine import compiled_runner
from measure import interleave, options, publish, table
from torch import Tensor, nn

from sidestep.evaluation.bench import batches_of
from sidestep.evaluation.rivals import (
    Runner,
    export_onnx,
    installed,
    openvino_int8,
    openvino_runner,
    static_runners,
)
from sidestep.execution.prepare import Precision, prepare
from sidestep.networks.cascade_network import CascadeNetwork
from sidestep.runs.export import engine_of_run, exportable
from sidestep.runs.quantised import quantised_run
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.runs.timing import test_images
from sidestep.targets.native_engine import engine_of, engine_runner
from sidestep.types import Batch

INT8 = "openvino, INT8 (NNCF)"
CALIBRATION_IMAGES = 300

Held = Precision | Literal["int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A network in a runtime.

    Attributes:
        what: its name.
        precision: of weights and features.
        accuracy: in percent, or None where it is that of another row.
        ms: milliseconds a call, by batch size.
    """

    what: str
    precision: str
    accuracy: float | None = None
    ms: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of the cascade, alone.

    Attributes:
        name: of the member.
        view: the cascade's images to its own.
        static: the network, prepared.
        onnx: the same, or None where no runtime takes it.
        quantised: the same in INT8, or None without NNCF.
    """

    name: str
    view: nn.Module
    static: nn.Module
    onnx: bytes | None
    quantised: Any

    def runners(self, precision: Held, batch_size: int, compiles: bool) -> dict[str, Runner]:
        """Return every way to run it, by name."""
        if precision == "int8":
            if self.quantised is None:
                return {}
            return {f"{self.name}, {INT8}": openvino_runner(self.quantised, "float32", batch_size)}
        found = {
            f"{self.name}, {name.removeprefix('static ')}": runner
            for name, runner in static_runners(self.static, self.onnx, precision, batch_size).items()
        }
        if compiles:
            found[f"{self.name}, torch.compile"] = compiled_runner(self.static, precision)
        return found


def members_of(opened: OpenedRun, images: Tensor, calibration: Tensor | None) -> list[Member]:
    """Return the members of a cascade."""
    network = opened.network
    assert isinstance(network, CascadeNetwork)
    members = []
    for settings, member, view in zip(
        opened.recipe.model.settings.members, network.members, network.views, strict=True
    ):
        seen = view(images[:2])
        static = prepare(member, seen).static
        assert isinstance(static, nn.Module)
        onnx = export_onnx(static, (seen.shape[2], seen.shape[3]))
        quantised = None if onnx is None or calibration is None else openvino_int8(onnx, view(calibration))
        members.append(Member(name=settings.name, view=view, static=static, onnx=onnx, quantised=quantised))
    return members


def time_all(
    calls: Mapping[str, tuple[Runner, Callable[[Tensor], Tensor]]],
    images: Tensor,
    batch_size: int,
    seconds: float,
) -> dict[str, float]:
    """Return milliseconds of a call, the mean over several small batches."""
    batches = batches_of(images, batch_size)

    def call(runner: Runner, view: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        inputs = [runner.convert(view(batch).contiguous()) for batch in batches]
        return lambda: [runner.run(each) for each in inputs]

    with torch.inference_mode():
        ms = interleave({name: call(*each) for name, each in calls.items()}, seconds=seconds)
    return {name: each / len(batches) for name, each in ms.items()}


def accuracy_of(runner: Runner, view: Callable[[Tensor], Tensor], batches: Sequence[Batch]) -> float:
    """Return top-1 in percent, from batches that are all of the size that the runner was made for."""
    right = count = 0
    with torch.inference_mode():
        for batch in batches:
            logits = torch.as_tensor(runner.run(runner.convert(view(batch.images).contiguous())))
            right += int((logits.float().argmax(dim=1) == batch.labels).sum())
            count += len(batch.labels)
    return 100 * right / count


def compare(opened: OpenedRun, chosen: Any) -> tuple[list[Row], list[str]]:
    """Return the rows of a run, and what there is to say about decisions."""
    sizes = [int(size) for size in chosen.batch_sizes.split(",")]
    images = test_images(opened, chosen.source, max(sizes), opened.exit_rule)
    val, test = (data_of(opened, split, chosen.source) for split in ("val", "test"))
    assert val.val is not None and test.test is not None  # cascades have both
    calibration = None
    if installed("nncf"):
        calibration = next(iter(val.val.eval_batches(batch_size=CALIBRATION_IMAGES))).images
    members = members_of(opened, images, calibration)
    whole = list(test.test.eval_batches(batch_size=100))
    whole = [batch for batch in whole if len(batch.labels) == 100]
    rows, told = [], []
    for precision in (*get_args(Precision), "int8"):
        engine = engine_in(opened, precision, chosen.source)
        accuracy, different = _decisions(opened, engine, whole)
        told.append(
            f"{precision}: {different} of {100 * len(whole):,} images leave elsewhere than in masked PyTorch"
        )
        found = {"cascade, engine": Row(what="cascade, engine", precision=precision, accuracy=accuracy)}
        for size in sizes:
            calls = {"cascade, engine": (engine_runner(engine), _same)}
            for member in members:
                for name, runner in member.runners(precision, size, chosen.compile).items():
                    calls[name] = (runner, member.view)
            for name, ms in time_all(calls, images, size, chosen.seconds).items():
                found.setdefault(name, Row(what=name, precision=precision)).ms[size] = ms
        rows += _with_accuracy(found, members, whole, precision)
    return rows, told


def engine_in(opened: OpenedRun, precision: Held, source: str | None) -> Any:
    """Return the engine of a run in a precision."""
    if precision != "int8":
        return engine_of_run(opened, opened.exit_rule, precision)
    export = exportable(opened, opened.exit_rule, source=source)
    return engine_of(quantised_run(opened, export, source=source).found.plan.as_bytes())


def _same(images: Tensor) -> Tensor:
    return images


def _decisions(opened: OpenedRun, engine: Any, batches: Sequence[Batch]) -> tuple[float, int]:
    """Return the engine's accuracy in percent, and how many images leave elsewhere than in masked PyTorch."""
    right = different = count = 0
    with torch.inference_mode():
        for batch in batches:
            said = engine(batch.images.numpy())
            wanted = opened.network(batch.images, rule=opened.exit_rule).decisions.exits
            right += int((torch.from_numpy(said.logits).argmax(dim=1) == batch.labels).sum())
            different += int((torch.from_numpy(said.exits) != wanted.argmax(dim=1)).sum())
            count += len(batch.labels)
    return 100 * right / count, different


def _with_accuracy(
    found: dict[str, Row], members: Sequence[Member], batches: Sequence[Batch], precision: Held
) -> list[Row]:
    """Return rows with the accuracy of members in PyTorch, whose precision others share, and in INT8."""
    known: dict[str, float] = {}
    for member in members:
        runners = member.runners(precision, 100, compiles=False)
        for runtime in ("pytorch", INT8):
            name = f"{member.name}, {runtime}"
            if name in runners:
                known[name] = accuracy_of(runners[name], member.view, batches)
    return [
        Row(what=row.what, precision=row.precision, accuracy=known.get(name, row.accuracy), ms=row.ms)
        for name, row in found.items()
    ]


def page(rows: Sequence[Row], last: str) -> str:
    """Return the table: every row beside the fastest runtime of the last member.

    That is the fastest in the row's own precision, and for INT8, which whoever may quantise can choose, the
    fastest of all.
    """
    sizes = list(rows[0].ms)
    names = ["what", "precision", "accuracy %", *(f"batch {size}, ms (ratio)" for size in sizes)]
    lines = []
    for row in rows:
        rivals = [
            each
            for each in rows
            if each.what.startswith(f"{last}, ") and row.precision in (each.precision, "int8")
        ]
        cells = []
        for size in sizes:
            best = min(each.ms[size] for each in rivals)
            cells.append(f"{row.ms[size]:.3f} ({row.ms[size] / best:.2f})")
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.2f}"
        lines.append([row.what, row.precision, accuracy, *cells])
    return table(names, lines)


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("run", type=Path, help="run folder of a calibrated cascade")
    parser.add_argument("--source", help="where its data lies now (as data.source)")
    parser.add_argument("--batch-sizes", default="1,256", help="images per call (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes minutes")


def main() -> None:
    chosen = options("A cascade in the engine against its members alone", seconds=20.0, more=arguments)
    opened = open_run(chosen.run, "best")
    if not isinstance(opened.network, CascadeNetwork) or opened.exit_rule is None:
        raise SystemExit(
            f"run {chosen.run} must be a calibrated cascade; make one with `sidestep cascade --budget`"
        )
    rows, told = compare(opened, chosen)
    names = [member.name for member in opened.recipe.model.settings.members]
    macs = ", ".join(f"{name} {1e-6 * each:.1f} M" for name, each in zip(names, _macs(opened), strict=True))
    about = [
        f"{', then '.join(names)}; MACs up to each: {macs}. Ratios are against the fastest runtime of "
        f"{names[-1]} at the same batch size: in the same precision, and in any for INT8. Accuracy stands "
        "where it was taken; other runtimes of the same precision compute the same.",
        page(rows, names[-1]),
        "\n".join(f"- {line}" for line in told),
    ]
    publish("A cascade in the engine against its members alone, CPU", about, chosen)


def _macs(opened: OpenedRun) -> list[float]:
    exits, units = opened.cost.exits, opened.cost.exit_units
    assert exits is not None and units is not None  # cascades have exits
    before = torch.cat([torch.zeros(1), opened.cost.options[:, -1].cumsum(0)])
    return (exits + opened.cost.fixed + before[units]).tolist()


if __name__ == "__main__":
    main()
