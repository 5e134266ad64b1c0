"""What the figures show, and that drawing them leaves the caller's matplotlib alone."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from sidestep.errors import RecipeError
from sidestep.results.figures import (
    ExitLines,
    Line,
    Point,
    accuracy_cost_figure,
    keep_rates_figure,
    save_accuracy_cost,
    save_keep_rates,
)
from sidestep.results.published import PublishedPoint, published_points


def published(system: str, cost: float, **changes: object) -> PublishedPoint:
    values = {"backbone": "resnet110", "dataset": "cifar10", "accuracy": 93.0, "unit": "MACs", "read": "text"}
    return PublishedPoint(system=system, cost=cost, **values | changes)  # type: ignore[arg-type]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def line(name: str, *points: tuple[float, float]) -> Line:
    return Line(name=name, points=tuple(Point(gflops=cost, percent=percent) for cost, percent in points))


def test_points_of_a_line_rise_in_cost() -> None:
    lines = [line("ours", (0.1, 92.0), (0.05, 90.0)), line("static", (0.2, 93.0))]
    (axes,) = accuracy_cost_figure(lines, [], []).axes
    ours, static = axes.get_lines()
    assert list(ours.get_xdata()) == [0.05, 0.1] and list(ours.get_ydata()) == [90.0, 92.0]
    assert list(static.get_xdata()) == [0.2]
    assert to_hex(ours.get_color()) != to_hex(static.get_color())
    assert legend(axes) == ["ours", "static"] and not axes.containers
    assert "GFLOPs" in axes.get_xlabel() and "%" in axes.get_ylabel()


def test_lines_of_one_family_have_one_colour_and_other_markers() -> None:
    lines = [replace(line(name, (0.1, 92.0)), family=family) for name, family in ("ax", "by", "cx", "dx")]
    (axes,) = accuracy_cost_figure([*lines, line("e", (0.2, 92.0))], [], []).axes
    colors = {drawn.get_label(): to_hex(drawn.get_color()) for drawn in axes.get_lines()}
    markers = [drawn.get_marker() for drawn in axes.get_lines() if drawn.get_label() in "acd"]
    assert colors["a"] == colors["c"] == colors["d"] and len(set(colors.values())) == 3
    assert len(set(markers)) == 3


def test_deviations_over_seeds_are_error_bars() -> None:
    seeds = Point(gflops=0.1, percent=92.0, gflops_deviation=0.01, percent_deviation=0.5)
    (axes,) = accuracy_cost_figure(
        [Line(name="three", points=(seeds,)), line("one", (0.2, 93.0))], [], []
    ).axes
    (bars,) = axes.containers
    across, upright = bars.lines[2]  # type: ignore[index]
    assert across.get_segments()[0][:, 0] == pytest.approx([0.09, 0.11])
    assert upright.get_segments()[0][:, 1] == pytest.approx([91.5, 92.5])
    assert legend(axes) == ["three", "one"]


def test_names_are_shown_as_the_user_has_them() -> None:
    lines = [line("_hidden", (0.1, 92.0)), line("a $x_1$ b", (0.2, 93.0)), line("no\udcffname", (0.3, 94.0))]
    figure = accuracy_cost_figure(lines, [], [])
    assert legend(figure.axes[0]) == [" _hidden", r"a \$x_1\$ b", "no?name"]
    figure.savefig(BytesIO())


def test_published_points_are_in_gflops_named_once_and_without_ablations() -> None:
    points = [
        published("paper", 0.1),
        published("paper", 0.3, unit="FLOPs"),
        published("memory", 0.2, read="memory"),
        published("ablation", 0.4, place="table 2"),
    ]
    (axes,) = accuracy_cost_figure([line("ours", (0.1, 92.0))], points, []).axes
    offsets = [tuple(map(float, drawn.get_offsets()[0])) for drawn in axes.collections]
    assert offsets == [(0.2, 93.0), (0.3, 93.0), (0.4, 93.0)]
    assert legend(axes) == ["ours", "paper, published", "memory, published (not checked)"]


def test_anytime_exits_are_stairs_and_budgets_a_line_of_one_colour() -> None:
    anytime, budgeted = line("", (0.1, 80.0), (0.3, 90.0)).points, line("", (0.1, 80.0), (0.2, 88.0)).points
    exits = [ExitLines(name="net", curves={"anytime": anytime, "budgeted": budgeted})]
    (axes,) = accuracy_cost_figure([line("ours", (0.1, 92.0))], [], exits).axes
    ours, stairs, curve = axes.get_lines()
    assert (stairs.get_drawstyle(), curve.get_drawstyle()) == ("steps-post", "default")
    assert list(curve.get_xdata()) == [0.1, 0.2]
    assert to_hex(stairs.get_color()) == to_hex(curve.get_color()) != to_hex(ours.get_color())
    assert legend(axes) == ["ours", "net, anytime", "net, budgeted"]


REPORT = {
    "accuracy": 0.9312,
    "gflops": 0.0801,
    "fraction_of_full": 0.5821,
    "num_paths": 42,
    "keep_rates": [1.0, 0.25, 0.5],
    "keep_rates_per_class": [[1.0, 0.0, 0.5], [1.0, 0.5, 0.5]],
}


def test_keep_rates_are_bars_over_all_images_and_a_map_of_classes() -> None:
    figure = keep_rates_figure(REPORT, ["cat", "dog"])
    top, bottom, *_ = figure.axes
    assert [bar.get_height() for bar in top.patches] == [1.0, 0.25, 0.5]
    assert [bar.get_x() + bar.get_width() / 2 for bar in top.patches] == pytest.approx([1, 2, 3])
    assert figure.get_suptitle() == "93.12% at 0.0801 GFLOPs (58.2% of the static network), 42 paths"
    (image,) = bottom.get_images()
    array = image.get_array()
    assert array is not None and array.tolist() == REPORT["keep_rates_per_class"]
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in bottom.get_yticklabels()] == ["cat", "dog"]


def a_map(num_classes: int, num_units: int = 3, name: str = "class {}") -> tuple[Figure, Axes]:
    report = REPORT | {
        "keep_rates": [0.5] * num_units,
        "keep_rates_per_class": [[0.5] * num_units] * num_classes,
    }
    figure = keep_rates_figure(report, [name.format(index) for index in range(num_classes)])
    figure.savefig(BytesIO())
    return figure, figure.axes[1]


@pytest.mark.parametrize("num_classes", [1, 2, 10, 21, 100, 120, 200])
def test_every_class_is_named_and_names_do_not_overlap(num_classes: int) -> None:
    _, bottom = a_map(num_classes)
    labels = bottom.get_yticklabels()
    assert [label.get_text() for label in labels] == [f"class {index}" for index in range(num_classes)]
    assert gaps_between(labels) >= 0 and labels[0].get_fontsize() >= 5


@pytest.mark.parametrize("num_classes", [1000, 5000])
def test_of_very_many_classes_every_nth_is_named(num_classes: int) -> None:
    figure, bottom = a_map(num_classes)
    labels, places = bottom.get_yticklabels(), bottom.get_yticks()
    assert len(labels) > 50 and set(places[1:] - places[:-1]) == {places[1] - places[0]}
    assert [label.get_text() for label in labels] == [f"class {int(place)}" for place in places]
    assert gaps_between(labels) >= 0 and labels[0].get_fontsize() >= 5
    assert figure.get_size_inches()[1] < 50


def gaps_between(labels: Sequence[Text]) -> float:
    """Return the least distance of two labels in pixels, the lower below the upper one."""
    boxes = [label.get_window_extent() for label in labels]
    return min((above.y0 - below.y1 for above, below in pairwise(boxes)), default=0.0)


@pytest.mark.parametrize("num_units", [1, 2, 3, 4, 8, 15, 54])
def test_units_are_whole_numbers(num_units: int) -> None:
    _, bottom = a_map(4, num_units)
    low, high = bottom.get_xlim()
    ticks = [tick for tick in bottom.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) and 1 <= tick <= num_units for tick in ticks)


@pytest.mark.parametrize("name", ["_{}", "$\\frac{}", "\udcff{}", "[bold]{}", "a long name " * 9 + "{}"])
def test_any_name_of_a_class_can_be_drawn(name: str) -> None:
    _, bottom = a_map(3, name=name)
    assert all(label.get_text() for label in bottom.get_yticklabels())


def test_figures_are_pictures(tmp_path: Path) -> None:
    save_keep_rates(tmp_path / "keep.png", REPORT, ["cat", "dog"])
    save_accuracy_cost(tmp_path / "cost.png", [line("ours", (0.1, 92.0))], published_points("cifar10"))
    for path in tmp_path.iterdir():
        assert path.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")])
def test_the_ending_decides_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    save_accuracy_cost(tmp_path / name, [line("ours", (0.1, 92.0))])
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.docx", "a", "png"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"figure must end in one of .*png.*, got .*; png suits pages"):
        save_accuracy_cost(tmp_path / name, [line("ours", (0.1, 92.0))])
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_caller_his_backend(tmp_path: Path) -> None:
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        settings = dict(matplotlib.rcParams)
        save_accuracy_cost(tmp_path / "a.png", [line("ours", (0.1, 92.0))])
        assert dict(matplotlib.rcParams) == settings
        assert pyplot.get_fignums() == [] and matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_published_costs_are_converted() -> None:
    assert published("x", 0.125).gflops == 0.25
    assert published("x", 0.125, unit="FLOPs").gflops == 0.125
    # No dynamic ResNet-110 costs more than the static one (0.506 GFLOPs), whatever its source's unit.
    assert max(point.gflops for point in published_points("cifar10")) < 0.51
    assert {point.dataset for point in published_points()} == {"cifar10", "cifar100", "imagenet"}
    with pytest.raises(RecipeError, match="must be one of cifar10, cifar100, imagenet, got 'mnist'"):
        published_points("mnist")
