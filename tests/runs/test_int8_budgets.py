"""Latency books and frontiers of networks on bytes, in the engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sidestep
from sidestep.cli.main import main
from sidestep.errors import RecipeError
from sidestep.files import read_safetensors
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.runs import latency as runs_latency
from sidestep.runs.candidates import find_frontier
from sidestep.runs.export import exportable
from sidestep.runs.latency import measure_book, with_all_exits
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_folder import open_run
from sidestep.targets.export_target import plan_of
from sidestep.targets.native_engine import EngineNetwork, engine_of
from tests.hasty import hasten
from tests.runs.test_cascade import in_no_time

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None, reason="sidestep-engine is not installed"
)
DATA: dict[str, Any] = {
    "source": "digits", "image_size": 16, "workers": 0, "crop_padding": 0, "flip": False, "limit": 300
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with gates and an exit."""
    values = {
        "method": {"name": "rdi_net", "target": 0.6, "gate_mode": "hard", "router": {"dim": 8}},
        "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 8}},
        "data": DATA,
        "training": {"batch_size": 50, "phases": [{"name": "joint", "epochs": 2, "lr": 0.1}]},
    }
    return sidestep.train(from_dict(values), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(runs_latency, "fit_prices", in_no_time)


def test_books_on_bytes_are_the_engines(run: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(run), "--book", "engine", "--precision", "int8", "--seconds", "0"]
    assert main(command) == 0
    assert "engine-int8-1" in capsys.readouterr().out
    assert (run / "latency" / "engine-int8-1.json").is_file()
    report = sidestep.evaluate(run, execution="engine", precision="int8", book="engine-int8-1")
    assert report.latency_ms is not None and report.latency_ms > 0
    with pytest.raises(RecipeError, match=r"must be of float32, in which .*, and is of int8"):
        sidestep.evaluate(run, execution="engine", precision="float32", book="engine-int8-1")
    with pytest.raises(RecipeError, match="int8 of a latency book must go with the engine, got pytorch"):
        measure_book(run, "pytorch", precision="int8")
    with pytest.raises(RecipeError, match="must be one of auto, float32, bfloat16, int8, got 'int4'"):
        measure_book(run, "engine", precision="int4")  # type: ignore[arg-type]


def test_an_engine_says_what_all_exits_say(run: Path) -> None:
    opened = open_run(run, "best")
    export = with_all_exits(exportable(opened, None))
    images = torch.rand(20, 3, 16, 16)
    with torch.no_grad():
        wanted = opened.network(images)
    found = EngineNetwork(engine_of(plan_of(export).as_bytes(), "float32"), opened.cost)(images)
    assert wanted.exit_logits is not None and found.exit_logits is not None
    torch.testing.assert_close(found.exit_logits, wanted.exit_logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.decisions.paths(), wanted.decisions.paths())
    cost = opened.cost
    torch.testing.assert_close(cost.at_exits(found.decisions), cost.at_exits(wanted.decisions))


def test_candidates_are_scored_and_timed_on_bytes(run: Path, quick: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_file(build_backbone(ModelConfig(name="cifar_resnet14"), 10).state_dict(), weights)
    candidates = [str(run), f"cifar_resnet14={weights}"]
    options = [text for key, value in DATA.items() for text in (f"--data.{key}", str(value).lower())]
    page = tmp_path / "page.md"
    command = ["frontier", *candidates, *options, "--out", str(page), "--num-budgets", "5"]
    assert main([*command, "--precision", "int8", "--runtime", "engine"]) == 0
    assert "Candidates ran in int8, in the native engine." in page.read_text()
    assert "## The fastest for its accuracy" in page.read_text()
    on_bytes = _scores(page.with_suffix(".scores"))
    find_frontier(candidates, data=DATA, scores=tmp_path / "real", num_budgets=5)
    for key, logits in _scores(tmp_path / "real").items():
        off = (on_bytes[key] - logits).square().mean().sqrt() / logits.std()
        assert 1e-4 < off < 0.2


def _scores(folder: Path) -> dict[tuple[int, ...], torch.Tensor]:
    """Return the kept logits by their shape: of one exit, and of two."""
    found = [read_safetensors(path)[0]["exit_logits"] for path in folder.iterdir()]
    return {tuple(logits.shape): logits for logits in found}


def test_bytes_need_images_to_be_calibrated_on(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must have a validation split where val_fraction is 0"):
        find_frontier([str(run), str(run)], data=DATA | {"val_fraction": 0.0}, scores=tmp_path, on_bytes=True)
