"""The picture of the README: accuracy over milliseconds, from pages in `benchmarks/results`.

Above the members of a cascade in every static runtime, and the cascade; below trained dynamic networks, and
the static network that they are made from. What stands in one plot was measured on one machine, in one run.

    python benchmarks/picture.py
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, NullLocator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "pictures" / "accuracy_over_time.png"

# Of Okabe and Ito's palette; what is ours differs from what is static in shape too.
STATIC, ENGINE = "#6b6b6b", {"cascade": ("#D55E00", "*"), "skipping": ("#0072B2", "D")}
SHAPES = {"PyTorch": "o", "ONNX Runtime": "s", "OpenVINO": "^"}
# Filled where the precision is lower.
FILLS: dict[str, Literal["none", "left", "full"]] = {"float32": "none", "bfloat16": "left", "int8": "full"}
RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
NAMES = {"rdi_net": "RDI-Net", "codinet": "CoDiNet", "convnet_aig": "ConvNet-AIG", "skipnet": "SkipNet"}
# Where a name stands: by default at the left, since the points of a network go on to the right.
LABELS = {
    "ResNet-20, then 56": ((-4, 17), "left"),
    "ResNet-20": ((-4, 11), "left"),
    "CoDiNet": ((8, -3), "left"),
    "ConvNet-AIG": ((8, -3), "left"),
}
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A network in a runtime.

    Attributes:
        network: its name, beside its fastest point.
        runtime: of `SHAPES`, or of `ENGINE`.
        precision: of `FILLS`.
        batch: images a call.
        ms: milliseconds of an image.
        accuracy: in percent.
    """

    network: str
    runtime: str
    precision: str
    batch: int
    ms: float
    accuracy: float


def newest(topic: str) -> Path:
    """Return the page of a topic of results."""
    (page,) = (RESULTS / topic).glob("*.md")
    return page


def tables(page: Path) -> Iterator[list[dict[str, str]]]:
    """Return the tables of a page, each as rows by the names of its columns."""
    for found in re.findall(r"(?:^\|.*\n?)+", page.read_text(), re.MULTILINE):
        lines = [line.removeprefix("|").removesuffix("|").split("|") for line in found.splitlines()]
        names, _, *rows = [[cell.strip() for cell in line] for line in lines]
        yield [dict(zip(names, row, strict=True)) for row in rows]


def hardware(page: Path) -> str:
    """Return the processor that a page was measured on."""
    found = re.search(r"^- hardware: ([^(]+(?:\(R\)[^(]*)*)", page.read_text(), re.MULTILINE)
    assert found is not None, page
    amx = ", AMX" if "amx" in page.read_text() else ""
    return f"2 cores, {found[1].replace('(R)', '').replace(' Processor', '').strip()}{amx}"


def cascade_points(page: Path) -> list[Point]:
    """Return a cascade and its members, from the page of `cascade_rivals.py`.

    `torch.compile` is left out: it is slower than PyTorch there.
    """
    (rows,) = tables(page)
    accuracies: dict[tuple[str, str], float] = {}
    points = []
    for row in rows:
        network, _, runtime = row["what"].partition(", ")
        precision = row["precision"]
        if row["accuracy %"]:
            accuracies[network, precision] = float(row["accuracy %"])
        if runtime == "torch.compile":
            continue
        ours = network == "cascade"
        for column, cell in row.items():
            if batch := re.fullmatch(r"batch (\d+), ms \(ratio\)", column):
                point = Point(
                    network="ResNet-20, then 56" if ours else network.replace("cifar_resnet", "ResNet-"),
                    runtime="cascade" if ours else RUNTIMES[runtime.partition(",")[0]],
                    precision=precision,
                    batch=int(batch[1]),
                    ms=float(cell.split()[0]) / int(batch[1]),
                    accuracy=accuracies[network, precision],
                )
                points.append(point)
    return points


def skipping_points(page: Path, origin: float) -> list[Point]:
    """Return trained networks that skip blocks, from the page of `engine_accuracy.py`, in float32.

    The static network that they are made from stands once, with the median of its times in its best runtime.

    Args:
        page: the page.
        origin: accuracy of that static network, in percent.
    """
    accuracies, times = tables(page)
    reached = {row["run"]: float(row["engine float32, %"]) for row in accuracies}
    rows = [row for row in times if row["precision"] == "float32"]
    points = []
    rivals: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        batch, (runtime, ms) = int(row["batch"]), row["best static, ms/image"].split(": ")
        rivals.setdefault((batch, RUNTIMES[runtime.removeprefix("static ")]), []).append(float(ms))
        point = Point(
            network=NAMES[row["run"].rpartition("_")[0]],
            runtime="skipping",
            precision="float32",
            batch=batch,
            ms=float(row["engine, ms/image"]),
            accuracy=reached[row["run"]],
        )
        points.append(point)
    points += [
        Point(
            network="ResNet-32",
            runtime=runtime,
            precision="float32",
            batch=batch,
            ms=median(found),
            accuracy=origin,
        )
        for (batch, runtime), found in rivals.items()
    ]
    return points


def origin_accuracy(page: Path) -> float:
    """Return the accuracy of the static ResNet-32, from the page of the frontier of its family."""
    for rows in tables(page):
        for row in rows:
            if row.get("candidate") == "cifar_resnet32":
                return float(row["accuracy %"].split()[0])
    raise ValueError(f"{page} has no row of cifar_resnet32")


def all_points() -> dict[str, list[Point]]:
    """Return the points of every row of plots, by the machine that they were measured on."""
    cascades, skipping = newest("cascade_rivals"), newest("engine_accuracy")
    return {
        hardware(cascades): cascade_points(cascades),
        hardware(skipping): skipping_points(skipping, origin_accuracy(newest("frontier"))),
    }


def fingerprint(points: dict[str, list[Point]]) -> str:
    """Return what the picture keeps of its points, so that a test sees when the pages are newer."""
    told = json.dumps({machine: [asdict(point) for point in row] for machine, row in points.items()})
    return hashlib.sha256(told.encode()).hexdigest()


def draw(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the points of one machine and batch size, with a name beside the fastest point of each network."""
    named: set[tuple[str, float]] = set()
    for point in sorted(points, key=lambda point: point.ms):
        color, marker = ENGINE.get(point.runtime, (STATIC, SHAPES.get(point.runtime, "")))
        size = 15 if marker == "*" else 8
        fill = FILLS[point.precision]
        axes.plot(point.ms, point.accuracy, marker, color=color, fillstyle=fill, markersize=size)
        # Precisions of one network differ by hundredths, members of a family of runs by more.
        name = (point.network, round(point.accuracy))
        if name not in named:
            named.add(name)
            offset, side = LABELS.get(point.network, ((-8, -3), "right"))
            place = (point.ms, point.accuracy)
            axes.annotate(
                point.network, place, offset, textcoords="offset points", ha=side, fontsize=9, color=color
            )
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.2)
    least, most = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if least <= tick <= most])
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def picture(points: dict[str, list[Point]]) -> Figure:
    """Return the figure: a row a machine, a column a batch size."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    grid = figure.subplots(len(points), 2, sharey="row", squeeze=False)
    for row, (machine, found) in zip(grid, points.items(), strict=True):
        for axes, batch in zip(row, sorted({point.batch for point in found}), strict=True):
            draw(axes, [point for point in found if point.batch == batch])
            calls = "one image a call" if batch == 1 else f"{batch} images a call"
            axes.set_title(f"{calls}; {machine}", fontsize=10)
        row[0].set_ylabel("CIFAR-10, top-1 accuracy, %")
    for axes in grid[-1]:
        axes.set_xlabel("milliseconds an image")
    figure.legend(handles=list(legend()), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def legend() -> Iterator[Line2D]:
    """Return what shapes and fillings stand for."""
    for (color, marker), text in zip(
        ENGINE.values(), ("cascade, in the engine", "blocks skipped, in the engine"), strict=True
    ):
        yield Line2D([], [], color=color, marker=marker, linestyle="", label=text)
    for runtime, marker in SHAPES.items():
        yield Line2D([], [], color=STATIC, marker=marker, linestyle="", label=f"static, {runtime}")
    for precision, fill in FILLS.items():
        yield Line2D([], [], color="k", marker="o", linestyle="", fillstyle=fill, label=precision)


def main() -> None:
    """Write the picture, with the fingerprint of its points."""
    points = all_points()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture(points).savefig(PICTURE, dpi=110, metadata={"Description": fingerprint(points)})


if __name__ == "__main__":
    main()
