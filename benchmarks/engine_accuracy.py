"""What the engine's arithmetic costs in accuracy, and what trained networks gain in time, on the test split.

For the runs that are named: masked PyTorch in float32, the engine in float32 and in bfloat16 on all images of
the test split, and their times on the first of them beside the best static runtime on the run's origin.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import options, publish, table
from torch import Tensor

from sidestep.evaluation.bench import ENGINE, BenchRow, bench_network
from sidestep.evaluation.report import Report, Seen, report_of
from sidestep.runs.export import engine_of_run, engines_of
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.targets.native_engine import routed
from sidestep.types import Batch, RoutedOutput

BATCH_SIZES = (1, 256)
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one way of running a network said of all images.

    Attributes:
        report: accuracy and cost.
        logits: (N, C).
        options: (N, L), the option of every unit, -1 where it was not asked.
    """

    report: Report
    logits: Tensor
    options: Tensor

    @classmethod
    def of(cls, opened: OpenedRun, batches: list[Batch], outputs: list[RoutedOutput], name: str) -> Answers:
        """Return what outputs say of the images of batches."""
        seen = Seen()
        for batch, output in zip(batches, outputs, strict=True):
            seen.add(output, batch.labels, opened.cost)
        classes = len(opened.values["class_names"])
        weights = torch.cat([output.decisions.weights for output in outputs])
        ran = weights.sum(dim=2) > 0
        return cls(
            report=report_of(seen, opened.cost, num_classes=classes, execution=name, decisions="argmax"),
            logits=torch.cat([output.logits for output in outputs]),
            options=torch.where(ran, weights.argmax(dim=2), -1),
        )


def masked_answers(opened: OpenedRun, batches: list[Batch]) -> Answers:
    """Return the answers of masked PyTorch."""
    with torch.inference_mode():
        outputs = [opened.network(batch.images) for batch in batches]
    return Answers.of(opened, batches, outputs, "masked")


def engine_answers(opened: OpenedRun, batches: list[Batch], precision: str) -> Answers:
    """Return the answers of the engine."""
    engine = engine_of_run(opened, None, precision)  # type: ignore[arg-type]
    outputs = [routed(engine(batch.images.numpy()), opened.cost, num_exits=0) for batch in batches]
    return Answers.of(opened, batches, outputs, ENGINE)


def correctness(run: Path, opened: OpenedRun, batches: list[Batch]) -> list[str]:
    """Return a run's line of the first table."""
    wanted = masked_answers(opened, batches)
    found = {precision: engine_answers(opened, batches, precision) for precision in PRECISIONS}
    exact = found["float32"]
    same = (exact.options == wanted.options).all(dim=1)
    distance = (exact.logits - wanted.logits)[same].abs().max() / wanted.logits.abs().max()
    accuracies = [100 * answers.report.accuracy for answers in (wanted, *found.values())]
    return [
        run.name,
        f"{wanted.report.gflops:.4f}",
        f"{wanted.report.fraction_of_full:.1%}",
        *(f"{accuracy:.2f}" for accuracy in accuracies),
        f"{accuracies[2] - accuracies[0]:+.2f}",
        f"{distance:.1e}",
        f"{int((exact.options != wanted.options).sum())} of {wanted.options.numel():,}",
        f"{int((found['bfloat16'].options != wanted.options).sum())}",
    ]


def times(run: Path, opened: OpenedRun, images: Tensor, seconds: float) -> list[list[str]]:
    """Return a run's lines of the second table, one for every precision and batch size."""
    rows = bench_network(
        opened.network,
        input_size=(images.shape[2], images.shape[3]),
        batch_sizes=BATCH_SIZES,
        images=images,
        seconds=seconds,
        extra=engines_of(opened, None),
    ).rows
    return [
        _time_line(run.name, [r for r in rows if (r.precision, r.batch_size) == (precision, batch_size)])
        for precision in PRECISIONS
        for batch_size in BATCH_SIZES
    ]


def _time_line(name: str, rows: list[BenchRow]) -> list[str]:
    best = min((row for row in rows if row.runtime.startswith("static")), key=lambda row: row.median_ms)
    engine = next(row for row in rows if row.runtime == ENGINE)
    return [
        name,
        engine.precision,
        str(engine.batch_size),
        f"{engine.ms_per_image:.3f}",
        f"{best.runtime}: {best.ms_per_image:.3f}",
        f"{engine.ratio_to_best_static:.2f}",
    ]


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")


def main() -> None:
    chosen = options("The engine on trained networks: accuracy and time", seconds=5.0, more=arguments)
    first, second = [], []
    for run in chosen.runs:
        opened = open_run(run, "best")
        test = data_of(opened, "test", chosen.source).test
        assert test is not None  # all sources have one
        batches = list(test.eval_batches(batch_size=max(BATCH_SIZES)))
        first.append(correctness(run, opened, batches))
        second += times(run, opened, batches[0].images, chosen.seconds)
    names = ["run", "GFLOPs", "of static", "masked, %", "engine float32, %", "engine bfloat16, %"]
    names += ["bfloat16 - masked", "logits apart, float32", "decisions differ, float32", "bfloat16"]
    columns = ["run", "precision", "batch", "engine, ms/image", "best static, ms/image", "ratio"]
    words = (
        "Accuracy on the test split, all images, best epoch by the validation split. Logits apart: largest "
        "difference to masked PyTorch over its largest logit, of images that took the same path."
    )
    publish(
        "The engine on trained networks, CPU", [words, table(names, first), table(columns, second)], chosen
    )


if __name__ == "__main__":
    main()
