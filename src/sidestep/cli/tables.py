"""Tables of the command line: what a command found, in rows and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from sidestep.cost.latency_book import LatencyBook
    from sidestep.evaluation.budget_points import BudgetCalibration, BudgetCurve, BudgetPoint
    from sidestep.evaluation.exit_curve import ExitCalibration, ExitCurve
    from sidestep.evaluation.frontier import FrontierPoint
    from sidestep.evaluation.unit_survey import UnitSurvey
    from sidestep.methods import Method
    from sidestep.registry import Registry
    from sidestep.runs.recipe_book import RecipeCard
    from sidestep.runs.sweep import SweepRow
    from sidestep.targets.run_plan import Prediction
    from sidestep.types import Unit


def plain_table(*columns: str | Column, title: str = "") -> Table:
    """Return an empty table that cuts nothing off, with its title as it is: rich would read it as markup."""
    shown = [Column(each, overflow="fold") if isinstance(each, str) else each for each in columns]
    return Table(*shown, title=literal(title) if title else None)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of texts that are shown as they are."""
    table.add_row(*map(literal, cells))


def literal(text: str) -> Text:
    """Return a text without markup, and without what is no Unicode, as names of files can be."""
    return Text(text.encode(errors="backslashreplace").decode())


def show(found: Any, table: Table, as_json: bool = False) -> None:
    """Print what a command found: its table, or one JSON object and nothing else."""
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(table)


def tell(sentence: str, as_json: bool = False) -> None:
    """Print what came of a command or what may come next, unless JSON was asked for and nothing else."""
    if not as_json:
        print(sentence)


def report_table(report: Mapping[str, Any], title: str) -> Table:
    """Return a `Report`, given as plain values."""
    table = plain_table("figure", "value", title=title)
    add_row(table, "images", f"{report['num_images']:,}")
    add_row(table, "accuracy", f"{report['accuracy']:.2%}")
    add_row(table, "GFLOPs per image (2 x MACs, routers in)", f"{report['gflops']:.4f}")
    add_row(table, "GFLOPs without routers", f"{report['gflops_without_routers']:.4f}")
    add_row(table, "fraction of the static network", f"{report['fraction_of_full']:.1%}")
    if report.get("latency_ms") is not None:
        add_row(table, f"ms per image ({report['latency_book']})", f"{report['latency_ms']:.4f}")
    add_row(table, "executed blocks", f"{report['executed_mean']:.2f} ± {report['executed_std']:.2f}")
    add_row(table, "distinct paths", f"{report['num_paths']:,}")
    for name in ("image", "class"):
        if (bits := report.get(f"{name}_bits")) is not None:
            add_row(table, f"bits of a path about the {name}", f"{bits:.2f}")
    if report["keep_rates"]:
        add_row(table, "keep rate per block", " ".join(f"{rate:.2f}" for rate in report["keep_rates"]))
    if report.get("exit_rates"):
        add_row(table, "leave at each exit", " ".join(f"{rate:.2f}" for rate in report["exit_rates"]))
    if report.get("exit_accuracies"):
        accuracies = " ".join(f"{accuracy:.2%}" for accuracy in report["exit_accuracies"])
        add_row(table, "accuracy of each exit on all", accuracies)
    return table


def quantisation_table(report: Mapping[str, Any], title: str) -> Table:
    """Return a `QuantisationReport`, given as plain values."""
    heads = ["test split", "float32", "int8", "changed"]
    table = plain_table(*heads, title=f"{title}, calibrated on {report['calibrated_on']:,} images")
    real, quantised, change = report["real"], report["quantised"], report["change"]
    before, after = real["accuracy"], quantised["accuracy"]
    add_row(table, "accuracy", f"{before:.2%}", f"{after:.2%}", f"{100 * (after - before):+.2f} points")
    before, after = real["gflops"], quantised["gflops"]
    add_row(table, "GFLOPs per image", f"{before:.4f}", f"{after:.4f}", f"{after / before - 1:+.2%}")
    sizes = [report[key] for key in ("num_bytes", "num_bytes_quantised")]
    add_row(table, "MB", *(f"{1e-6 * size:.2f}" for size in sizes), f"x {sizes[1] / sizes[0]:.2f}")
    add_row(table, "predictions", "", "", f"{change['predictions']:.2%}")
    add_row(table, "decisions", "", "", f"{change['decisions']:.2%}")
    layers = sorted((x for x in report["layers"] if not x["is_real"]), key=lambda x: -(x["error"] or 0))
    for layer in layers[:5]:
        add_row(table, f"error of {layer['name']}", "", f"{layer['error']:.2%}", layer["rule"] or "")
    kept = [layer["part"] for layer in report["layers"] if layer["is_real"]]
    for part in dict.fromkeys(kept):
        add_row(table, f"{part}, layers left real", str(kept.count(part)), "", "")
    return table


def predictions_table(predictions: Sequence[Prediction], title: str) -> Table:
    """Return what a plan says about images, one a row."""
    table = plain_table("image", "class", "probability", "blocks", "of full MACs", title=title)
    for found in predictions:
        add_row(
            table,
            found.path,
            found.label,
            f"{found.probability:.1%}",
            f"{found.executed} of {found.num_units}",
            f"{found.fraction:.1%}",
        )
    return table


def calibration_table(calibration: ExitCalibration) -> Table:
    """Return the exits of a calibration, one a row."""
    table = plain_table("exit", "threshold", "temperature", "calibration error", "before", "leave here")
    for exit, rate in enumerate(calibration.exit_rates):
        last = exit == len(calibration.thresholds)
        add_row(
            table,
            str(exit + 1),
            "-" if last else f"{calibration.thresholds[exit]:.4f}",
            f"{calibration.temperatures[exit]:.3f}",
            f"{calibration.calibration_errors[exit]:.2%}",
            f"{calibration.raw_calibration_errors[exit]:.2%}",
            f"{rate:.1%}",
        )
    return table


def asked_table(calibration: BudgetCalibration) -> Table:
    """Return what the routers of a network are asked for, of gates for one budget their biases."""
    point, biases = calibration.point, calibration.biases
    if biases is None:
        table = plain_table("routers are asked for", "accuracy")
        add_row(table, f"{point.asked:.4f}", f"{point.accuracy:.2%}")
        return table
    table = plain_table("bias of gates", "accuracy", "bits about the image", "about its class")
    least, most = min(biases), max(biases)
    shown = _bias(least) if least == most else f"{_bias(least)} to {_bias(most)}"
    add_row(table, shown, f"{point.accuracy:.2%}", *_bits(point))
    return table


def _bias(bias: float) -> str:
    """Return the bias of a gate; one beyond all logits is none that anybody wants to read."""
    return f"{bias:+.4f}" if abs(bias) < 1e6 else "execute all" if bias > 0 else "skip all"


def _bits(point: BudgetPoint) -> list[str]:
    return [f"{bits:.2f}" if bits is not None else "" for bits in (point.image_bits, point.class_bits)]


def budgets_table(curve: BudgetCurve, title: str) -> Table:
    """Return the points of a network at many budgets, one a row."""
    timed = all(point.ms is not None for point in curve.points)
    asked = "bias of gates" if curve.by_dial else "routers are asked for"
    heads = [asked, "budget, GFLOPs", "GFLOPs", "of full", *(["ms"] if timed else [])]
    bits = ["bits about the image", "about its class"] if curve.by_dial else []
    table = plain_table(*heads, "accuracy", *bits, title=title)
    for budget, point in zip(curve.budgets_macs, curve.points, strict=True):
        add_row(
            table,
            _bias(point.asked) if curve.by_dial else f"{point.asked:.3f}",
            f"{2e-9 * budget:.4f}",
            f"{2e-9 * point.macs:.4f}",
            f"{point.macs / curve.full_macs:.1%}",
            *([f"{point.ms:.4f}"] if timed else []),
            f"{point.accuracy:.2%}",
            *(_bits(point) if bits else []),
        )
    return table


def curve_table(curve: ExitCurve, title: str) -> Table:
    """Return the points of a curve of exits, one a row."""
    timed = all(row.point.ms is not None for row in curve.points)
    heads = ["curve", "budget, GFLOPs", "GFLOPs", "of full", *(["ms"] if timed else []), "accuracy"]
    table = plain_table(*heads, title=title)
    for row in curve.points:
        budget, cost = row.budget_macs, row.point.macs
        add_row(
            table,
            row.kind,
            "" if budget is None else f"{2e-9 * budget:.4f}",
            f"{2e-9 * cost:.4f}",
            f"{cost / curve.full_macs:.1%}",
            *([f"{row.point.ms:.4f}"] if timed else []),
            f"{row.point.accuracy:.2%}",
        )
    return table


def book_table(books: Sequence[LatencyBook], title: str) -> Table:
    """Return latency books, one a row: milliseconds per image at every exit with all units executed."""
    table = plain_table("latency book", "ms at each exit", "skipped units save", "error", title=title)
    for book in books:
        prices, units = book.prices, book.prices.options[:, -1]
        ends = [len(units)] if prices.exit_units is None else prices.exit_units.tolist()
        ways = [0.0] if prices.exits is None else prices.exits.tolist()
        totals = [prices.fixed + way + float(units[:end].sum()) for way, end in zip(ways, ends, strict=True)]
        saved = f"{float(units.sum()) / totals[-1]:.0%} of the last"
        add_row(
            table,
            book.name,
            " ".join(f"{ms:.4f}" for ms in totals),
            saved if units.any() else "",
            f"{book.error:.1%}",
        )
    return table


def sweep_table(rows: Sequence[SweepRow], title: str) -> Table:
    """Return the runs of a sweep, one a row, with what varies in columns of its own.

    Stars mark those that no other one beats in both figures.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    recipes = len({row.recipe for row in rows}) > 1 or not keys
    heads = [*(["recipe"] if recipes else []), *(key.rpartition(".")[2] for key in keys)]
    table = plain_table(*heads, "state", "accuracy", "of static", "best", title=f"{title} (validation split)")
    for row in rows:
        add_row(
            table,
            *([row.recipe] if recipes else []),
            *(row.settings.get(key, "") for key in keys),
            row.state,
            "" if row.accuracy is None else f"{row.accuracy:.2%}",
            "" if row.fraction is None else f"{row.fraction:.1%}",
            "*" if row.is_best else "",
        )
    return table


def comparison_table(reports: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Return reports of several networks side by side, one a row."""
    heads = ["network", "accuracy", "GFLOPs", "of static", "executed blocks", "paths", "bits of class"]
    table = plain_table(*heads, title=title)
    for name, report in reports.items():
        add_row(
            table,
            name,
            f"{report['accuracy']:.2%}",
            f"{report['gflops']:.4f}",
            f"{report['fraction_of_full']:.1%}",
            f"{report['executed_mean']:.2f}",
            f"{report['num_paths']:,}",
            f"{report['class_bits']:.2f}",
        )
    return table


def frontier_table(points: Sequence[FrontierPoint], unit: Unit = "MACs") -> Table:
    """Return the points of a front in a unit, one a row, at most thirty of them evenly spread."""
    shown = points[:: max(1, len(points) // 30)]
    timed = unit == "ms"
    heads = ["network", "accuracy", *(["ms"] if timed else []), "M MACs", "reach each"]
    title = "the fastest for its accuracy" if timed else "the cheapest for its accuracy"
    table = plain_table(*heads, title=title)
    for point in shown:
        add_row(
            table,
            ", then ".join(point.members) + (", exits" if point.kind == "exits" else ""),
            f"{point.accuracy:.2%} ± {100 * point.error:.2f}",
            *([f"{point.cost(unit):.4f}"] if timed else []),
            f"{1e-6 * point.macs:.1f}",
            " ".join(f"{share:.1%}" for share in point.shares),
        )
    return table


def survey_table(survey: UnitSurvey, ms: Sequence[float] | None) -> Table:
    """Return a table of units: what each costs, and what the network is without it."""
    heads = ["block", "of the MACs", *(["ms"] if ms is not None else []), "accuracy without", "loss rises by"]
    whole = survey.whole
    table = plain_table(*heads, title=f"all blocks: {whole.accuracy:.2%} on {survey.num_images:,} images")
    for unit, tried in enumerate(survey.without):
        add_row(
            table,
            survey.names[unit],
            f"{1 - tried.fraction:.1%}",
            *([f"{ms[unit]:.4f}"] if ms is not None else []),
            f"{tried.accuracy:.2%} ± {100 * tried.error:.2f}",
            f"{tried.loss - whole.loss:+.4f}",
        )
    return table


def recipes_list(cards: Sequence[RecipeCard]) -> Table:
    """Return the recipes that come with the package: their names, which are long, and below what they say."""
    table = Table.grid(padding=(0, 1))
    for card in cards:
        table.add_row(literal(card.name))
        for text in (card.about, f"expected: {card.expected}", f"minutes: {card.minutes}"):
            table.add_row(Padding(literal(text), (0, 0, 0, 4)))
    return table


def bench_table(result: Mapping[str, Any], title: str) -> Table:
    """Return a `BenchResult`, given as plain values."""
    table = plain_table("runtime", "precision", "batch", "ms", "ms per image", "of best static", title=title)
    for row in result["rows"]:
        add_row(
            table,
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
    table = plain_table("method", "what it is")
    for name, method in methods.items():
        add_row(table, name, method.summary)
    return table
