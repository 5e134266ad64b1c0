"""Data and runs belong together by the names of classes and their order, not by their number."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sidestep
from sidestep.cli.main import main
from sidestep.errors import DataError, InterruptedRunError
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_folder import open_run
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.loop import BEST, LAST
from tests.reference.plan import read_plan
from tests.training.test_fit import at_step

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}},
    "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 8}},
    "data": {"source": "set", "workers": 0, "val_fraction": 0.25},
    "training": {"phases": [{"name": "joint", "epochs": 2}], "batch_size": 4},
}


def fill(
    root: str, classes: tuple[str, ...] = ("cat", "dog"), splits: tuple[str, ...] = ("train", "test")
) -> None:
    for split in splits:
        for index, name in enumerate(classes):
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            for n in range(4):
                pixels = np.random.default_rng(10 * index + n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fill("set")
    return sidestep.train(from_dict(RECIPE), tmp_path / "run")


ASK: dict[str, Callable[..., Any]] = {
    "evaluate": lambda run, source: sidestep.evaluate(run, source=source),
    "bench": lambda run, source: sidestep.bench(run, source=source, batch_sizes=[1], seconds=0.01),
    "calibrate": lambda run, source: sidestep.calibrate(run, ExitBudget(fraction=0.9), source=source),
    "curve": lambda run, source: sidestep.curve(run, source=source),
}
OTHERS = {
    ("dog", "zcat"): "got 2: there is 'zcat' and there is no 'cat'; rename its folders",
    ("cat",): "got 1: there is no 'dog'; rename",
    ("bird", "cat", "dog"): "got 3: there is 'bird'; rename",
}


@pytest.mark.parametrize("way", ASK)
def test_other_classes_are_named(way: str, run: Path) -> None:
    for classes, said in OTHERS.items():
        shutil.rmtree("other", ignore_errors=True)
        fill("other", classes)
        with pytest.raises(
            DataError, match=f"'other' must have the run's 2 classes, by name and order, {said}"
        ):
            ASK[way](run, "other")
    fill("moved")
    ASK["evaluate"](run, "moved")


def test_the_same_classes_in_another_order_are_named(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    rows = {"image": [Image.new("RGB", (16, 16))] * 2, "label": [0, 1]}
    Path("hub", "data").mkdir(parents=True)
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(f"hub/data/{split}-00000-of-00001.parquet")
    message = "by name and order, got 2: their order differs: class 0 is 'dog' instead of 'cat'; rename"
    with pytest.raises(DataError, match=message):
        sidestep.evaluate(run, source=f"hfds/{tmp_path / 'hub'}")


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill("set")
    with monkeypatch.context() as patch:
        at_step(2, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            sidestep.train(from_dict(RECIPE), tmp_path / "run")
    assert (tmp_path / "run" / LAST).is_file()
    for split in ("train", "test"):
        Path("set", split, "cat").rename(Path("set", split, "mouse"))
    with pytest.raises(DataError, match="by name and order, got 2: there is 'mouse' and there is no 'cat'"):
        sidestep.train(from_dict(RECIPE), tmp_path / "run", resume=True)
    shutil.rmtree("set")
    fill("set")
    for path in Path("set").rglob("*.png"):
        Image.new("RGB", (24, 24)).save(path)
    with pytest.raises(
        DataError, match=r"must be as when the run began, with size \[16, 16\], got \[24, 24\]"
    ):
        sidestep.train(from_dict(RECIPE), tmp_path / "run", resume=True)
    shutil.rmtree("set")
    fill("set")
    sidestep.train(from_dict(RECIPE), tmp_path / "run", resume=True)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_that_no_file_takes_go_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("caf\udce9", "costs $5 or $\\foo$", "[red]")
    fill("set", names)
    run = sidestep.train(from_dict(RECIPE), tmp_path / "run")
    shown = ("[red]", "caf\\udce9", "costs $5 or $\\foo$")
    assert open_run(run, "best").class_names == shown
    assert sorted(path.name for path in run.glob("*.p*")) == ["keep_rates.png"]
    assert main(["evaluate", str(run)]) == 0
    assert main(["export", str(run)]) == 0
    assert read_plan(run / "best.plan")[0]["classes"] == list(shown)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_a_training_split_that_has_changed_is_not_held_out_of(run: Path) -> None:
    Image.new("RGB", (16, 16)).save("set/train/cat/more.png")
    sentence = (
        r"training split of source .set. must be as when the run began, 8 images, labels \w{8}, content "
        r"\w{8}, got 9 images, labels \w{8}, content \w{8}; restore it"
    )
    for ask in (
        lambda: sidestep.evaluate(run, split="val"),
        lambda: sidestep.calibrate(run, ExitBudget(fraction=0.9)),
        lambda: sidestep.train(from_dict(RECIPE), run, resume=True),
    ):
        with pytest.raises(DataError, match=sentence):
            ask()
    sidestep.evaluate(run)
    sidestep.evaluate(run, split="val", source="set")


def test_other_images_of_the_same_names_and_number_are_other_images(run: Path) -> None:
    path = Path("set/train/cat/2.png")
    shutil.copy("set/train/dog/2.png", path)
    for ask in (
        lambda: sidestep.evaluate(run, split="val"),
        lambda: sidestep.calibrate(run, ExitBudget(fraction=0.9)),
        lambda: sidestep.train(from_dict(RECIPE), run, resume=True),
    ):
        with pytest.raises(DataError, match=r"must be as when the run began, (8 .*), content \w{8}, got \1"):
            ask()
    # Runs of before it was noted are compared by number and labels.
    path = run / BEST
    checkpoint = load_checkpoint(path)
    known = checkpoint.values["drawn_from"].partition(", content")[0]
    values = checkpoint.values | {"drawn_from": known}
    save_checkpoint(path, Checkpoint(tensors=checkpoint.tensors, values=values))
    sidestep.evaluate(run, split="val")


def test_renamed_files_are_the_same_images(run: Path) -> None:
    for path in Path("set").rglob("*.png"):
        path.rename(path.with_name(f"image_{path.name}"))
    sidestep.evaluate(run, split="val")
