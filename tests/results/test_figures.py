"""What the figures show, and that drawing them leaves the caller's matplotlib alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from sidestep.errors import RecipeError
from sidestep.results.figures import (
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


def test_runs_of_one_name_are_a_line_that_rises_in_cost() -> None:
    series = {"ours": [(0.1, 92.0), (0.05, 90.0)], "static": [(0.2, 93.0)]}
    (axes,) = accuracy_cost_figure(series, [], {}).axes
    ours, static = axes.get_lines()
    assert list(ours.get_xdata()) == [0.05, 0.1] and list(ours.get_ydata()) == [90.0, 92.0]
    assert list(static.get_xdata()) == [0.2]
    assert to_hex(ours.get_color()) != to_hex(static.get_color())
    assert legend(axes) == ["ours", "static"]
    assert "GFLOPs" in axes.get_xlabel() and "%" in axes.get_ylabel()


def test_published_points_are_in_gflops_named_once_and_without_ablations() -> None:
    points = [
        published("paper", 0.1),
        published("paper", 0.3, unit="FLOPs"),
        published("memory", 0.2, read="memory"),
        published("ablation", 0.4, place="table 2"),
    ]
    (axes,) = accuracy_cost_figure({"ours": [(0.1, 92.0)]}, points, {}).axes
    offsets = [tuple(map(float, drawn.get_offsets()[0])) for drawn in axes.collections]
    assert offsets == [(0.2, 93.0), (0.3, 93.0), (0.4, 93.0)]
    assert legend(axes) == ["ours", "paper, published", "memory, published (not checked)"]


def test_anytime_exits_are_stairs_and_budgets_a_line_of_one_colour() -> None:
    exits = {"net": {"anytime": [(0.1, 80.0), (0.3, 90.0)], "budgeted": [(0.1, 80.0), (0.2, 88.0)]}}
    (axes,) = accuracy_cost_figure({"ours": [(0.1, 92.0)]}, [], exits).axes
    ours, anytime, budgeted = axes.get_lines()
    assert (anytime.get_drawstyle(), budgeted.get_drawstyle()) == ("steps-post", "default")
    assert list(budgeted.get_xdata()) == [0.1, 0.2]
    assert to_hex(anytime.get_color()) == to_hex(budgeted.get_color()) != to_hex(ours.get_color())
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
    top, bottom, *_ = keep_rates_figure(REPORT, ["cat", "dog"]).axes
    assert [bar.get_height() for bar in top.patches] == [1.0, 0.25, 0.5]
    assert [bar.get_x() + bar.get_width() / 2 for bar in top.patches] == pytest.approx([1, 2, 3])
    assert top.get_title() == "93.12% at 0.0801 GFLOPs (58.2% of the static network), 42 paths"
    (image,) = bottom.get_images()
    array = image.get_array()
    assert array is not None and array.tolist() == REPORT["keep_rates_per_class"]
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in bottom.get_yticklabels()] == ["cat", "dog"]


def test_many_classes_are_not_named() -> None:
    names = [f"class {index}" for index in range(21)]
    report = REPORT | {"keep_rates_per_class": [[1.0, 0.0, 0.5]] * 21}
    _, bottom, *_ = keep_rates_figure(report, names).axes
    assert not {label.get_text() for label in bottom.get_yticklabels()} & set(names)


def test_figures_are_pictures(tmp_path: Path) -> None:
    save_keep_rates(tmp_path / "keep.png", REPORT, ["cat", "dog"])
    save_accuracy_cost(tmp_path / "cost.png", {"ours": [(0.1, 92.0)]}, published_points("cifar10"))
    for path in tmp_path.iterdir():
        assert path.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")])
def test_the_ending_decides_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    save_accuracy_cost(tmp_path / name, {"ours": [(0.1, 92.0)]})
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.docx", "a", "png"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"figure must end in one of .*png.*, got .*; png suits pages"):
        save_accuracy_cost(tmp_path / name, {"ours": [(0.1, 92.0)]})
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_caller_his_backend(tmp_path: Path) -> None:
    program = f"""
import matplotlib
matplotlib.use("svg")
settings = dict(matplotlib.rcParams)
from pathlib import Path
from sidestep.results.figures import save_accuracy_cost
save_accuracy_cost(Path({str(tmp_path / "a.png")!r}), {{"ours": [(0.1, 92.0)]}})
assert dict(matplotlib.rcParams) == settings
from matplotlib import pyplot
assert pyplot.get_fignums() == [] and matplotlib.get_backend() == "svg"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_published_costs_are_converted() -> None:
    assert published("x", 0.125).gflops == 0.25
    assert published("x", 0.125, unit="FLOPs").gflops == 0.125
    # No dynamic ResNet-110 costs more than the static one (0.506 GFLOPs), whatever its source's unit.
    assert max(point.gflops for point in published_points("cifar10")) < 0.51
    assert {point.dataset for point in published_points()} == {"cifar10", "cifar100", "imagenet"}
    with pytest.raises(RecipeError, match="must be one of cifar10, cifar100, imagenet, got 'mnist'"):
        published_points("mnist")
