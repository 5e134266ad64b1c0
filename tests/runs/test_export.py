"""Runs exported from Python and from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, ExportError
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.recipe import from_dict
from tests.reference.plan import read_plan, run_plan

TINY: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1, "flip": False},
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.05}], "batch_size": 32, "max_steps": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sidestep.train(from_dict(TINY), tmp_path_factory.mktemp("runs") / "run")


def test_export_prints_path_size_and_units(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["export", str(run), "--to", "plan"]) == 0
    path = run / "best.plan"
    size = path.stat().st_size / 1e6
    assert capsys.readouterr().out == f"wrote {path}: {size:.2f} MB, 3 units that images can skip\n"
    document, tensors = read_plan(path)
    assert document["about"] == {
        "recipe": "tiny", "method": "rdi_net", "model": "cifar_resnet8", "checkpoint": "best"
    }  # fmt: skip
    assert document["input"]["size"] == [16, 16]
    assert len(document["classes"]) == 10
    network, images = sidestep.load(run), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        output = network(images)
    for index, image in enumerate(images):
        logits, decisions, _ = run_plan(document, tensors, image)
        torch.testing.assert_close(logits, output.logits[index], rtol=1e-4, atol=1e-5)
        assert decisions == output.decisions.paths()[index].tolist()


def test_file_and_checkpoint_can_be_chosen(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--checkpoint", "last", "--out", str(tmp_path / "mine.plan")]) == 0
    assert read_plan(tmp_path / "mine.plan")[0]["about"]["checkpoint"] == "last"
    assert sidestep.export_run(run, checkpoint="last").path == run / "last.plan"


def test_export_of_segments_says_what_freezing_costs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", str(run), "--to", "onnx", "--segments", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) / 1e6
    begin = f"wrote {tmp_path / 'out'}: {size:.2f} MB, "
    assert re.fullmatch(
        re.escape(begin) + r"[12] segments? in [13] graphs; [23] units frozen: \d+\.\d\d % right before and "
        r"\d+\.\d\d % after, on \d+ validation images, \d+\.\d\d % with the same class\n",
        said,
    )
    route = json.loads((tmp_path / "out" / "manifest.json").read_text())["additional_metadata"]["sidestep"]
    assert route["about"]["recipe"] == "tiny" and route["input"]["preparation"]["crop_share"] == 1.0


def test_images_leave_where_calibrate_has_said(tmp_path: Path) -> None:
    model = {**TINY["model"], "exits": {"at": ["layer1"], "width": 4}}
    run = sidestep.train(from_dict({**TINY, "model": model}), tmp_path / "run")
    assert sidestep.export_run(run).summary == "3 units that images can skip"
    assert not [step for step in read_plan(run / "best.plan")[0]["steps"] if "exit" in step]
    calibration = sidestep.calibrate(run, ExitBudget(fraction=0.8))
    sidestep.export_run(run)
    document, _ = read_plan(run / "best.plan")
    (leave,) = [step["exit"] for step in document["steps"] if "exit" in step]
    assert leave["criterion"] == "confidence"
    assert leave["threshold"] == calibration.thresholds[0]
    assert leave["temperature"] == calibration.temperatures[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "paper"], "to must be one of plan, onnx, onnx-if, torch, triton, timm, got 'paper'"),
        (
            ["--segments", "3"],
            "segments must go with to onnx or onnx-if or torch or triton, got to 'plan'; drop them",
        ),
        (["--to", "onnx", "--segments", "0"], "segments must be 1 or more, got 0"),
        (["--checkpoint", "middle"], "--checkpoint must be one of best, last, got 'middle'"),
        (["--out", "/dev/null/tiny.plan"], "could not be written"),
    ],
)
def test_what_cannot_be_exported_gets_a_sentence(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a run folder with best\.safetensors, and has none"):
        sidestep.export_run(tmp_path)


def test_images_that_are_standardised_one_by_one_are_refused(tmp_path: Path) -> None:
    data = {**TINY["data"], "per_image_standardization": True}
    run = sidestep.train(from_dict({**TINY, "data": data}), tmp_path / "run")
    with pytest.raises(ExportError, match=r"data\.per_image_standardization every image's own"):
        sidestep.export_run(run)
