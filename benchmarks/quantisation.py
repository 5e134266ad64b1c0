"""What INT8 costs trained networks in accuracy and saves in bytes, on the whole test split, in the engine.

For every run: its plan in float32 and on bytes, calibrated as `sidestep export --precision int8` does
it, both in the native engine. Aims: at most 0.3 points lower on CIFAR-10 and 1.0 on
photographs, at most 2 % of decisions changed, and a file of a quarter of float32's within 10 %.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from measure import options, publish, table

from sidestep.evaluation.report import Report, Seen, report_of
from sidestep.quantisation.changes import Change, change_between
from sidestep.runs.at_budget import ExitBudget, batches_of, settle
from sidestep.runs.export import exportable
from sidestep.runs.quantised import CALIBRATION_IMAGES, QuantisedRun, quantised_run
from sidestep.runs.run_folder import OpenedRun, open_run
from sidestep.targets.native_engine import engine_of, exits_in, routed

MAY_LOSE, MAY_LOSE_ON_PHOTOGRAPHS = 0.3, 1.0
MAY_CHANGE, MAY_WEIGH = 0.02, 0.275
# Of larger images the sets here are photographs.
SMALL = 64


def compared(opened: OpenedRun, run: QuantisedRun, source: str | None) -> tuple[list[Report], Change]:
    """Return the reports of a run's plans in float32 and on bytes in the engine, and what has changed."""
    engines = [engine_of(run.real.as_bytes(), "float32"), engine_of(run.found.plan.as_bytes())]
    seen: list[Seen] = [Seen(), Seen()]
    said: list[list[Any]] = [[], []]
    exits = exits_in(run.real.steps)
    for batch in batches_of(opened, "test", source)():
        for engine, notes, outputs in zip(engines, seen, said, strict=True):
            outputs.append(engine(batch.images.numpy()))
            notes.add(routed(outputs[-1], opened.cost, exits), batch.labels, opened.cost)
    reports = [
        report_of(notes, opened.cost, num_classes=len(opened.class_names), execution=name, decisions="argmax")
        for notes, name in zip(seen, ("float32", "int8"), strict=True)
    ]
    return reports, change_between(*said, num_exits=run.real.num_exits)


def line(opened: OpenedRun, run: QuantisedRun, reports: list[Report], change: Change) -> list[str]:
    """Return a run's line of the table."""
    real, quantised = reports
    points = 100 * (quantised.accuracy - real.accuracy)
    weight = len(run.found.plan.as_bytes()) / len(run.real.as_bytes())
    aim = MAY_LOSE if max(opened.input_size) <= SMALL else MAY_LOSE_ON_PHOTOGRAPHS
    # Accuracies are whole numbers of images, and their difference is not quite a decimal fraction.
    met = {
        "accuracy": points >= -aim - 1e-9,
        "decisions": change.decisions <= MAY_CHANGE,
        "bytes": weight <= MAY_WEIGH,
    }
    layers = run.found.layers
    decides = run.real.num_units or run.real.num_exits
    return [
        f"{opened.recipe.name} ({opened.recipe.model.name})",
        f"{real.num_images:,}",
        f"{100 * real.accuracy:.2f}",
        f"{100 * quantised.accuracy:.2f}",
        f"{points:+.2f}",
        f"{100 * change.predictions:.2f}",
        f"{100 * change.decisions:.2f}" if decides else "",
        f"{real.gflops / 2e-3:.1f}",
        f"{quantised.gflops / 2e-3:.1f}",
        f"{weight:.3f}",
        f"{sum(layer.is_real for layer in layers)} of {len(layers)}",
        ", ".join(f"{name}: {'yes' if fits else 'no'}" for name, fits in met.items()),
    ]


def arguments(parser: ArgumentParser) -> None:
    """Add what this script alone is told."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--source", help="where the runs' data lies now (as data.source)")
    parser.add_argument("--calibrate", type=int, default=CALIBRATION_IMAGES, help="validation images")
    parser.add_argument(
        "--budget",
        type=float,
        help="of exits that nobody has calibrated, as a fraction of the full network's MACs",
    )


def main() -> None:
    chosen = options("INT8 beside float32: accuracy, decisions, bytes", seconds=None, more=arguments)
    rows, kept = [], []
    for folder in chosen.runs:
        opened = open_run(folder, "best")
        asked = opened.network.has_early_exits and opened.exit_rule is None and chosen.budget is not None
        rule = settle(opened, ExitBudget(fraction=chosen.budget) if asked else None, chosen.source)
        export = exportable(opened, rule, source=chosen.source)
        run = quantised_run(opened, export, count=chosen.calibrate, source=chosen.source)
        rows.append(line(opened, run, *compared(opened, run, chosen.source)))
        left = [layer.name for layer in run.found.layers if layer.is_real]
        kept.append(f"- {opened.recipe.name}: {run.num_images} images; real: {', '.join(left) or 'nothing'}")
        write_page(rows, kept, chosen)


def write_page(rows: list[list[str]], kept: list[str], chosen: Namespace) -> None:
    """Publish what is known so far, so that it is there if the rest is stopped."""
    names = ["run", "images", "float32, %", "INT8, %", "points", "predictions changed, %"]
    names += [
        "decisions changed, %",
        "M MACs, float32",
        "M MACs, INT8",
        "bytes, x",
        "layers real",
        "aims met",
    ]
    words = (
        "Both plans in the native engine, all images of the test split; on bytes with what stays real in the "
        "precision that the engine chooses. Decisions are those of units and exits. Bytes: plan file over "
        "float32's. Aims: at most 0.3 points lower (1.0 on photographs), at most 2 % of decisions changed, "
        "bytes at most 0.275."
    )
    publish(
        "INT8 beside float32 in the engine, CPU",
        [words, table(names, rows), "Calibrated on, and what stays real:\n\n" + "\n".join(kept)],
        chosen,
    )


if __name__ == "__main__":
    main()
