"""Latency books of runs: measured, kept, found again, and refused where they do not hold."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sidestep
from sidestep.cli.main import main
from sidestep.cost.latency_book import LatencyBook, read_book, save_book
from sidestep.errors import ExecutionError, RecipeError
from sidestep.evaluation import bench
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.latency import measure_book
from sidestep.runs.recipe import from_dict

DATA = {"source": "digits", "image_size": 16, "workers": 0, "crop_padding": 0, "flip": False, "limit": 300}


def trained(folder: Path, model: dict[str, Any], method: str = "rdi_net") -> Path:
    settings = {"target": 0.6, "gate_mode": "hard", "router": {"dim": 8}} if method == "rdi_net" else {}
    values = {
        "method": {"name": method, **settings},
        "model": model,
        "data": DATA,
        "training": {"batch_size": 50, "phases": [{"name": "joint", "epochs": 1, "lr": 0.1}]},
    }
    return sidestep.train(from_dict(values), folder)


@pytest.fixture(autouse=True, scope="module")
def hasty() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_PAUSE_SECONDS", 0.0)
        patch.setattr(bench, "_TURN_SECONDS", 1e-4)
        yield


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with exits and a book of PyTorch."""
    exits = {"at": ["layer1", "layer2"], "width": 8}
    run = trained(tmp_path_factory.mktemp("exits") / "run", {"name": "cifar_resnet8", "exits": exits})
    measure_book(run, "pytorch", seconds=0.0)
    return run


@pytest.fixture
def run(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "run"))


def book_in(run: Path) -> Path:
    return run / "latency" / "pytorch-float32-1.json"


def test_a_book_has_a_price_for_every_part(run: Path) -> None:
    book = read_book(book_in(run))
    assert (book.runtime, book.precision, book.batch_size) == ("pytorch", "float32", 1)
    assert book.prices.options.shape == (3, 2) and book.prices.unit == "ms"
    assert book.prices.exits is not None and len(book.prices.exits) == 3
    assert (book.prices.exits.diff() >= 0).all() and book.prices.full > 0
    assert book.hardware["threads"] == torch.get_num_threads() and "torch" in book.versions


def test_a_book_comes_back_as_it_was_written(run: Path, tmp_path: Path) -> None:
    book = read_book(book_in(run))
    save_book(tmp_path / "again.json", book)
    assert (tmp_path / "again.json").read_text() == book_in(run).read_text()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"prices": 3}', '{"prices": {"fixed": 1}}', '{"prices": {"unit": "MACs"}}', "\x00"],
)
def test_what_is_no_book_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text(content)
    with pytest.raises(sidestep.SidestepError, match=r"latency book .*book\.json"):
        read_book(tmp_path / "book.json")


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -0.1])
def test_a_book_with_prices_that_are_none_is_refused(price: float, run: Path) -> None:
    values = json.loads(book_in(run).read_text())
    for part in ("fixed", "routers", "exits"):
        prices = values["prices"]
        changed = price if part == "fixed" else [price, *prices[part][1:]]
        book_in(run).write_text(json.dumps({**values, "prices": {**prices, part: changed}}))
        with pytest.raises(RecipeError, match="must be one that `bench --book` has written"):
            sidestep.evaluate(run, budget=ExitBudget(ms=1.0))


def test_budgets_in_milliseconds_are_solved_for_and_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = read_book(book_in(run)).prices
    assert prices.exits is not None
    middle = prices.fixed + float(prices.exits[1]) + float(prices.options[:2, 1].sum())
    found = sidestep.calibrate(run, ExitBudget(ms=middle))
    assert found.budget_ms == middle and found.ms == pytest.approx(middle, rel=0.05)
    report = sidestep.evaluate(run, book="pytorch-float32-1")
    assert report.latency_ms == pytest.approx(middle, rel=0.15)
    assert report.latency_book == "pytorch-float32-1"
    assert main(["calibrate", str(run), "--ms", str(middle)]) == 0
    assert f" of {middle} ms" in capsys.readouterr().out
    assert main(["curve", str(run), "--num-budgets", "3", "--book", "pytorch-float32-1"]) == 0
    assert "ms" in capsys.readouterr().out
    points = json.loads((run / "exits.json").read_text())["points"]
    assert all(point["point"]["ms"] > 0 for point in points)
    assert sidestep.evaluate(run, execution="cascade", budget=ExitBudget(ms=middle)).latency_ms is not None


def test_budgets_beyond_the_exits_are_refused_in_milliseconds(run: Path) -> None:
    with pytest.raises(RecipeError, match=r"budget must be between .* ms per image"):
        sidestep.evaluate(run, budget=ExitBudget(ms=1e-9))


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_no_such_milliseconds(ms: float) -> None:
    with pytest.raises(RecipeError, match="ms must be"):
        ExitBudget(ms=ms)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hardware": {"cpu": "another"}}, "must be of this machine as it is now, and its cpu is 'another'"),
        ({"hardware": {"threads": 99}}, "and its threads is 99"),
        ({"versions": {"torch": "1.0"}}, "its version of torch is '1.0'"),
        ({"network": {"input_size": [8, 8]}}, "of this run's network, and is of another"),
    ],
)
def test_a_book_of_elsewhere_is_refused(change: dict[str, Any], said: str, run: Path) -> None:
    values = json.loads(book_in(run).read_text())
    for group, entries in change.items():
        values[group] |= entries
    book_in(run).write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=said):
        sidestep.evaluate(run, budget=ExitBudget(ms=1.0))


def test_a_book_of_another_runtime_is_refused(run: Path) -> None:
    with pytest.raises(RecipeError, match="must be of engine, in which the network is to run"):
        sidestep.evaluate(run, execution="engine", budget=ExitBudget(ms=1.0))


def test_which_book_is_meant_has_to_be_clear(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="latency book 'engine-float32-1' must be a file or one of run"):
        sidestep.evaluate(run, book="engine-float32-1")
    shutil.copy(book_in(run), tmp_path / "elsewhere.json")
    assert sidestep.evaluate(run, book=str(tmp_path / "elsewhere.json")).latency_ms is not None
    shutil.copy(book_in(run), run / "latency" / "another.json")
    with pytest.raises(RecipeError, match="there are another, pytorch-float32-1; choose one with --book"):
        sidestep.calibrate(run, ExitBudget(ms=1.0))
    shutil.rmtree(run / "latency")
    with pytest.raises(RecipeError, match="there is none; measure one with `sidestep bench"):
        sidestep.calibrate(run, ExitBudget(ms=1.0))


@pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None, reason="sidestep-engine is not installed"
)
def test_the_engine_has_books_as_well(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(run), "--book", "engine", "--precision", "float32", "--seconds", "0"]
    assert main([*command, "--batch-sizes", "1,4"]) == 0
    assert "engine-float32-4" in capsys.readouterr().out
    book = read_book(run / "latency" / "engine-float32-1.json")
    assert book.prices.fixed > 0
    found = sidestep.evaluate(run, execution="engine", precision="float32", book=book.name)
    assert found.latency_ms is not None and found.latency_ms > 0
    with pytest.raises(RecipeError, match="of bfloat16, in which the network is to run, and is of float32"):
        sidestep.evaluate(run, execution="engine", precision="bfloat16", book=book.name)


def test_a_static_network_has_one_price(tmp_path: Path) -> None:
    run = trained(tmp_path / "static", {"name": "cifar_resnet8"}, "static")
    book = measure_book(run, "pytorch", seconds=0.0)
    assert isinstance(book, LatencyBook) and book.prices.full == pytest.approx(book.prices.fixed)


def test_unknown_runtimes_and_networks_that_halt(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="book must be one of engine, pytorch, onnxruntime, openvino"):
        measure_book(run, "tensorrt")  # type: ignore[arg-type]
    halting = trained(tmp_path / "act", {"name": "cifar_resnet8"}, "act")
    with pytest.raises(ExecutionError, match="got one that halts"):
        measure_book(halting, "pytorch")
