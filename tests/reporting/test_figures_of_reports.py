"""Figures of reports against slow literal formulas, and what their sentences say."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.evaluation.calibration import calibration_errors
from sidestep.reporting.class_figures import confusion
from sidestep.reporting.contents import figures_of
from sidestep.reporting.cost_figures import accuracy_cost, cost_book
from sidestep.reporting.exit_figures import calibration_bins, reliability
from sidestep.reporting.image_choice import chosen_images, galleries
from sidestep.reporting.image_table import GONE, ImageTable
from sidestep.reporting.path_figures import common_paths, keep_map, path_numbers_of, paths_reading
from sidestep.reporting.shown import Figure, ShownRun
from sidestep.reporting.sprite import make_sprite
from sidestep.reporting.training_figures import sweeps, training_curves
from sidestep.results.run_result import read_result
from tests.finished_runs import EPOCHS, add_bench, write_exit_run, write_run

NONE = np.zeros((0, 0))


def table(images: int = 60, units: int = 4, **changes: Any) -> ImageTable:
    """Return a table of images that were drawn, of a network with gates and without exits."""
    draw = np.random.default_rng(0)
    paths = draw.integers(0, 2, (images, units)).astype(np.uint8)
    labels, empty = draw.integers(0, 3, images), np.zeros(0)
    known = ImageTable(
        labels=labels,
        predictions=np.where(draw.random(images) < 0.7, labels, 0),
        confidences=draw.uniform(0.4, 1, images).astype(np.float32),
        paths=paths,
        routers=draw.random((images, units)).astype(np.float32),
        exits=empty,
        macs=1e6 * (1.0 + paths.sum(axis=1)),
        ms=empty,
        exit_scores=NONE,
        exit_predictions=NONE,
        exit_macs=NONE,
        temperatures=empty,
        budgets=empty,
        thresholds=NONE,
        option_macs=np.array([[0.0, 1e6]] * units),
        router_macs=np.full(units, 1e4),
        head_macs=empty,
        option_ms=NONE,
        head_ms=empty,
        units_before=np.array([units]),
        class_names=("ant", "bee", "cow"),
        full_macs=1e6 * (units + 1),
        fixed_macs=1e6,
    )
    return replace(known, **changes)


def figure(found: list[Figure]) -> Figure:
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("exits", [False, True])
def test_distances_are_means_over_all_pairs(exits: bool) -> None:
    known = table()
    if exits:
        left = np.arange(60) % 2
        paths = np.where((left == 0)[:, None] & (np.arange(4) > 1), GONE, known.paths).astype(np.uint8)
        known = replace(known, exits=left, paths=paths)
    apart: dict[bool, list[int]] = {True: [], False: []}
    rows = known.path_rows()
    for one, other in combinations(range(60), 2):
        apart[bool(known.labels[one] == known.labels[other])].append(int((rows[one] != rows[other]).sum()))
    numbers = path_numbers_of(known)
    assert numbers.inside == pytest.approx(np.mean(apart[True]))
    assert numbers.between == pytest.approx(np.mean(apart[False]))
    assert numbers.paths == len({tuple(row) for row in rows.tolist()})


def test_bins_have_the_expected_calibration_error_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 400, 5, generator=draw)
    labels = torch.randint(0, 5, (400,), generator=draw)
    confident, said = logits[0].softmax(dim=1).max(dim=1)
    bins, error = calibration_bins(confident.numpy(), (said == labels).numpy())
    assert error == pytest.approx(calibration_errors(logits, labels, [1.0])[0], abs=1e-6)
    assert sum(row["images"] for row in bins) == 400


def test_a_collapsed_gate_is_said_in_the_sentence() -> None:
    alike = table(paths=np.ones((60, 4), dtype=np.uint8))
    assert "one path" in paths_reading("x", alike) and "0 bits" in paths_reading("x", alike)
    rare = alike.paths.copy()
    rare[0, 0] = 0
    assert "collapsed" not in paths_reading("x", table())
    # One image of 600 on another path.
    many = np.concatenate([rare, *[alike.paths] * 9])
    labels = np.tile(alike.labels, 10)
    assert "collapsed" in paths_reading("x", replace(alike, paths=many, labels=labels))


def test_maps_paths_and_confusion_by_hand() -> None:
    known = table()
    run = ShownRun(name="x", table=known)
    rows = figure(keep_map(run)).rows
    assert [row[0] for row in rows] == ["ant", "bee", "cow"]
    assert rows[1][1:] == pytest.approx(known.paths[known.labels == 1].mean(axis=0).tolist())
    paths = figure(common_paths(run)).rows
    assert sum(row[1] for row in paths) == 60 and paths[0][1] == max(row[1] for row in paths)
    own = [text == paths[0][0] for text in known.path_texts()]
    assert paths[0][3:5] == pytest.approx([known.correct[own].mean(), 1e-6 * known.macs[own].mean()])
    cells = {(row[1], row[2]): row[4] for row in figure(confusion(run)).rows}
    wrong = int(((known.labels == 2) & (known.predictions == 0)).sum())
    assert cells["cow", "ant"] == wrong and sum(cells.values()) == 60
    assert "answer of x" in figure(reliability(run)).reading.lower()
    book = figure(cost_book(run)).rows
    assert sum(row[2] for row in book if row[1] == "router") == pytest.approx(0.04)


def test_images_are_those_of_galleries_and_as_many_wrong_as_others() -> None:
    known = table(images=400)
    shown = galleries(ShownRun(name="x", table=known))
    cheapest = shown[0].ids
    assert known.macs[cheapest].max() <= np.partition(known.macs, len(cheapest))[len(cheapest)]
    chosen = chosen_images([known], shown, 120)
    assert len(chosen) == 120 and chosen == sorted(set(chosen))
    assert {image for gallery in shown for image in gallery.ids} <= set(chosen)
    assert (~known.correct[chosen]).sum() >= 20
    same = replace(known, macs=np.full(400, 1e6))
    assert not any("heapest" in gallery.title for gallery in galleries(ShownRun(name="x", table=same)))


def test_sprites_show_pixels_as_they_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    sprite = make_sprite(pixels, [1, 4], originals=True)
    assert sprite.picture.size == (16, 8)
    assert (np.asarray(sprite.sheet([4], 1)) == pixels[1]).all()
    assert (np.stack(sprite.originals) == pixels).all()
    grey = make_sprite(pixels[..., :1], [0, 1])
    assert grey.as_uri().startswith("data:image/webp;base64,")


def test_accuracy_over_cost_has_seeds_curves_milliseconds_and_published_networks(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / "a_seed1",
            {"training.seed": 1, "data.source": "hfds/uoft-cs/cifar10"},
            best={"keep_rates": [0.5]},
        ),
        write_run(
            tmp_path / "a_seed2",
            {"training.seed": 2, "data.source": "hfds/uoft-cs/cifar10"},
            best={"accuracy": 0.9412, "keep_rates": [0.5]},
        ),
        write_exit_run(tmp_path / "exits", {"name": "other"}),
    ]
    add_bench(folders[0], [("engine cascade", "float32", 1, 2.5), ("static", "float32", 1, 4.0)])
    runs = [ShownRun(name=folder.name, result=read_result(folder), epochs=EPOCHS) for folder in folders]
    found = figure(accuracy_cost(runs))
    kinds = {(row[0], row[1]) for row in found.rows}
    assert ("a", "run") in kinds and ("exits", "budgeted") in kinds and ("exits", "anytime") in kinds
    assert ("RDI-Net (resnet110)", "published") in kinds
    a = next(row for row in found.rows if row[0] == "a")
    assert a[3:] == pytest.approx([500 * 0.0801, 93.62, np.std([93.12, 94.12], ddof=1)])
    assert [row[3] for row in found.rows if "ms" in row[2]] == [2.5]
    assert "± 0.71" in found.reading
    curves = figure(training_curves(runs))
    assert "step 30" in curves.reading and len(curves.rows) == 3 * 4
    assert {each.key for each in figures_of(runs, pictured=[])} == {"accuracy_cost", "training", "provenance"}


def test_sweeps_have_error_bars_over_seeds(tmp_path: Path) -> None:
    runs = []
    for gamma, accuracies in ((0.25, (0.91, 0.93)), (0.5, (0.94, 0.95))):
        for seed, accuracy in enumerate(accuracies):
            settings = {"method.router.gamma": gamma, "training.seed": seed}
            folder = write_run(tmp_path / f"g{gamma}_seed{seed}", settings, best={"accuracy": accuracy})
            runs.append(ShownRun(name=folder.name, result=read_result(folder)))
    found = figure(sweeps(runs))
    rows = {(row[0], row[1]): row[2:] for row in found.rows}
    assert rows[0.25, "accuracy"] == pytest.approx([92.0, np.std([91, 93], ddof=1), 2])
    assert "method.router.gamma 0.5: 94.50" in found.reading
    assert found.chart.to_dict()["hconcat"]
