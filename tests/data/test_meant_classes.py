"""Labels of a set that mean some of a network's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sidestep
from sidestep.data import DataConfig
from sidestep.data.load import open_split
from sidestep.errors import DataError
from sidestep.runs.recipe import from_dict
from tests.data.loading import load

INDICES = (12, 3, 7, 0, 1, 2, 4, 5, 6, 8)


def test_labels_are_those_of_the_network() -> None:
    plain, meant = load("digits"), load("digits", classes=13, class_indices=list(INDICES))
    assert meant.num_classes == 13
    assert meant.class_names == tuple(map(str, range(13)))
    for before, after in ((plain.train, meant.train), (plain.val, meant.val), (plain.test, meant.test)):
        assert before is not None and after is not None
        assert len(before) == len(after)
    assert plain.test is not None and meant.test is not None
    assert torch.equal(torch.tensor(INDICES)[plain.test.labels], meant.test.labels)


def photographs(folder: Path, names: tuple[str, ...]) -> Path:
    for split in ("train", "test"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / split / name / "a.png")
    return folder


def test_classes_that_the_set_names_keep_their_names(tmp_path: Path) -> None:
    source = str(photographs(tmp_path / "photos", ("crane", "tench")))
    config = DataConfig(source=source, classes="imagenet", class_indices=(517, 0))
    split = open_split(config, "test")
    assert split is not None
    assert len(split.class_names) == len(set(split.class_names)) == 1000
    assert [split.class_names[index] for index in (0, 1, 134, 517)] == [
        "tench", "goldfish", "crane (n02012849)", "crane"
    ]  # fmt: skip
    assert split.labels.tolist() == [517, 0]


def test_names_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("red\ngreen \nblue\n")
    source = str(photographs(tmp_path / "photos", ("leaf", "sky")))
    split = open_split(
        DataConfig(source=source, classes=str(tmp_path / "names.txt"), class_indices=(1, 2)), "test"
    )
    assert split is not None and split.class_names == ("red", "leaf", "sky")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": 20, "class_indices": (3, 4)},
            "one for each of the 10 classes of .*, got 2; its classes are 0, 1",
        ),
        ({"classes": "none.txt", "class_indices": INDICES}, r"got 'none.txt' \(No such file or directory\)"),
        (
            {"classes": "short.txt", "class_indices": INDICES},
            "must be below the 3 names of short.txt, got 12",
        ),
        (
            {"classes": "gap.txt", "class_indices": INDICES},
            "'gap.txt' must have two lines or more, each the name",
        ),
        ({"classes": "bytes.txt", "class_indices": INDICES}, r"got 'bytes.txt' \(it is no UTF-8\)"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a\nb\nc\n")
    Path("gap.txt").write_text("a\n\nc\n")
    Path("bytes.txt").write_bytes(b"\xff\n\xfe\n")
    with pytest.raises(DataError, match=message):
        load("digits", **changes)


def test_a_run_keeps_what_its_labels_mean(tmp_path: Path) -> None:
    recipe = from_dict(
        {
            "name": "meant",
            "method": {"name": "static"},
            "model": {"name": "cifar_resnet8"},
            "data": {"source": "digits", "workers": 0, "classes": 13, "class_indices": list(INDICES)},
            "training": {
                "phases": [{"name": "all", "epochs": 1, "lr": 0.01}],
                "batch_size": 500,
                "max_steps": 2,
            },
        }
    )
    run = sidestep.train(recipe, tmp_path / "run")
    network = sidestep.load(run)
    assert network(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 13)
    report = sidestep.evaluate(run)
    assert report.num_images == 297 and np.isfinite(report.accuracy)
    assert len(report.keep_rates_per_class) == 13
