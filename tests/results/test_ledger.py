"""The ledger: which runs stand beside which published numbers."""

from pathlib import Path
from typing import Any

import pytest

from sidestep.cli.main import main
from sidestep.results.ledger import dataset_of, ledger, ledger_page
from sidestep.results.page import save_results
from sidestep.results.published import PublishedPoint, published_points
from sidestep.results.run_result import read_result
from tests.finished_runs import write_run

POINT = PublishedPoint(
    system="vanilla gates",
    backbone="resnet110",
    dataset="cifar10",
    accuracy=93.21,
    cost=0.15,
    unit="MACs",
    read="figure",
    place="table 2",
    settings={"usw": False, "method.router.gamma": [0, 0.1], "method.srm.alpha": 0},
)


def write(folder: Path, *, gflops: float = 0.3, **changes: Any) -> Path:
    """Write a finished run of `POINT`, with other settings by key."""
    settings = {
        "name": "vanilla",
        "model.name": "cifar_resnet110",
        "method.router.gamma": 0.0,
        "training.seed": 0,
        "training.phases": [{"name": "joint", "paths": "uniform", "epochs": 0}],
    }
    others = {key.replace("__", "."): value for key, value in changes.items()}
    return write_run(folder, settings | others, best={"accuracy": 0.93, "gflops": gflops})


def test_runs_of_the_same_settings_at_the_same_cost_stand_beside_a_number(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", gflops=0.32, training__seed=1)]
    (row,) = ledger([POINT], runs)
    assert [run.folder for run in row.runs] == ["a", "b"]
    assert row.percent == pytest.approx(93.0) and row.gflops == pytest.approx(0.31)
    page = ledger_page([row])
    published = "| vanilla gates | resnet110 | cifar10 | table 2 | 93.21 (figure) | 0.300 |"
    assert f"{published} 93.00 ± 0.00 | 0.310 ± 0.014 | 0, 1 |" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "convnet_aig"},
        {"method__router": {"gamma": 0.5}},
        {"method__srm": {"alpha": 0.2}},
        {"model__name": "cifar_resnet32"},
        {"model__se_ratio": 16},
        {"data__source": "torch/cifar100"},
        {"training__phases": [{"paths": "uniform", "epochs": 3}]},
    ],
    ids=str,
)
def test_other_runs_do_not(changes: dict[str, Any], tmp_path: Path) -> None:
    (row,) = ledger([POINT], [write(tmp_path / "a", **changes)])
    assert row.runs == () and row.nearest is None and row.percent is None


def test_a_page_file_stands_for_its_runs(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", gflops=0.32, training__seed=1)]
    save_results(tmp_path / "page.md", runs)
    assert ledger([POINT], [tmp_path / "page.json"]) == ledger([POINT], runs)
    assert ledger([POINT], [tmp_path / "page.json", *runs]) == ledger([POINT], runs)


@pytest.mark.parametrize(("gflops", "beside"), [(0.271, True), (0.329, True), (0.269, False), (0.331, False)])
def test_a_tenth_of_the_cost_decides(gflops: float, beside: bool, tmp_path: Path) -> None:
    (row,) = ledger([POINT], [write(tmp_path / "a", gflops=gflops)])
    assert (len(row.runs) == 1) is beside and (row.nearest is None) is beside


def test_without_a_run_at_that_cost_the_nearest_one_is_named(tmp_path: Path) -> None:
    runs = [write(tmp_path / "far", gflops=0.1), write(tmp_path / "near", gflops=0.25)]
    (row,) = ledger([POINT], runs)
    assert row.runs == () and row.nearest is not None
    assert "| near: 93.00 % at 0.250 |" in ledger_page([row])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hfds/uoft-cs/cifar10", "cifar10"),
        ("hfds/some/folder/CIFAR100/", "cifar100"),
        ("torch/cifar10", "cifar10"),
        ("hfds/ILSVRC/imagenet-1k", "imagenet"),
        ("imagenette2-160", "imagenette2-160"),
    ],
)
def test_data_sets_are_known_by_the_end_of_their_source(source: str, name: str, tmp_path: Path) -> None:
    assert dataset_of(read_result(write(tmp_path / "a", data__source=source))) == name


def test_the_command_compares_with_all_that_was_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "a")
    assert main(["ledger", str(run), "--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert f"1 of {len(published_points())} have runs" in page
    assert "| + relational | resnet110 | cifar100 | table 2 | 73.71 | 0.300 |" in page
    assert main(["ledger", str(run), "--dataset", "mnist"]) == 2
    assert "data set of published numbers must be one of" in capsys.readouterr().err
