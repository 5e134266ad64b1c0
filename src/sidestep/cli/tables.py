"""Tables of the command line: what a command found, in rows and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sidestep.evaluation.exit_curve import ExitCalibration, ExitCurve
    from sidestep.methods import Method
    from sidestep.registry import Registry
    from sidestep.runs.sweep import SweepRow
    from sidestep.targets.run_plan import Prediction


def show(found: Any, table: Table, as_json: bool = False) -> None:
    """Print what a command found: its table, or one JSON object and nothing else."""
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(table)


def report_table(report: Mapping[str, Any], title: str) -> Table:
    """Return a `Report`, given as plain values."""
    table = Table("figure", "value", title=title)
    table.add_row("images", f"{report['num_images']:,}")
    table.add_row("accuracy", f"{report['accuracy']:.2%}")
    table.add_row("GFLOPs per image (2 x MACs, routers in)", f"{report['gflops']:.4f}")
    table.add_row("GFLOPs without routers", f"{report['gflops_without_routers']:.4f}")
    table.add_row("fraction of the static network", f"{report['fraction_of_full']:.1%}")
    table.add_row("executed blocks", f"{report['executed_mean']:.2f} ± {report['executed_std']:.2f}")
    table.add_row("distinct paths", f"{report['num_paths']:,}")
    if report["keep_rates"]:
        table.add_row("keep rate per block", " ".join(f"{rate:.2f}" for rate in report["keep_rates"]))
    if report.get("exit_rates"):
        table.add_row("leave at each exit", " ".join(f"{rate:.2f}" for rate in report["exit_rates"]))
    if report.get("exit_accuracies"):
        accuracies = " ".join(f"{accuracy:.2%}" for accuracy in report["exit_accuracies"])
        table.add_row("accuracy of each exit on all", accuracies)
    return table


def predictions_table(predictions: Sequence[Prediction], title: str) -> Table:
    """Return what a plan says about images, one a row."""
    table = Table("image", "class", "probability", "blocks", "of full MACs", title=title)
    for found in predictions:
        table.add_row(
            found.path,
            found.label,
            f"{found.probability:.1%}",
            f"{found.executed} of {found.num_units}",
            f"{found.fraction:.1%}",
        )
    return table


def calibration_table(calibration: ExitCalibration) -> Table:
    """Return the exits of a calibration, one a row."""
    table = Table("exit", "threshold", "temperature", "calibration error", "before", "leave here")
    for exit, rate in enumerate(calibration.exit_rates):
        last = exit == len(calibration.thresholds)
        table.add_row(
            str(exit + 1),
            "-" if last else f"{calibration.thresholds[exit]:.4f}",
            f"{calibration.temperatures[exit]:.3f}",
            f"{calibration.calibration_errors[exit]:.2%}",
            f"{calibration.raw_calibration_errors[exit]:.2%}",
            f"{rate:.1%}",
        )
    return table


def curve_table(curve: ExitCurve, title: str) -> Table:
    """Return the points of a curve of exits, one a row."""
    table = Table("curve", "budget, GFLOPs", "GFLOPs", "of full", "accuracy", title=title)
    for row in curve.points:
        budget, cost = row.budget_macs, row.point.macs
        table.add_row(
            row.kind,
            "" if budget is None else f"{2e-9 * budget:.4f}",
            f"{2e-9 * cost:.4f}",
            f"{cost / curve.full_macs:.1%}",
            f"{row.point.accuracy:.2%}",
        )
    return table


def sweep_table(rows: Sequence[SweepRow], title: str) -> Table:
    """Return the runs of a sweep, one a row; stars mark those that no other one beats in both figures."""
    table = Table("run", "state", "validation accuracy", "of the static network", "best", title=title)
    for row in rows:
        table.add_row(
            row.name,
            row.state if row.error is None else f"{row.state}: {row.error}",
            "" if row.accuracy is None else f"{row.accuracy:.2%}",
            "" if row.fraction is None else f"{row.fraction:.1%}",
            "*" if row.is_best else "",
        )
    return table


def bench_table(result: Mapping[str, Any], title: str) -> Table:
    """Return a `BenchResult`, given as plain values."""
    table = Table("runtime", "precision", "batch", "ms", "ms per image", "ratio to best static", title=title)
    for row in result["rows"]:
        table.add_row(
            row["runtime"],
            row["precision"],
            str(row["batch_size"]),
            f"{row['median_ms']:.2f}",
            f"{row['ms_per_image']:.3f}",
            f"{row['ratio_to_best_static']:.2f}",
        )
    return table


def methods_table(methods: Registry[Method[Any]]) -> Table:
    """Return methods by name, one a row."""
    table = Table("method", "what it is")
    for name, method in methods.items():
        table.add_row(name, method.summary)
    return table
