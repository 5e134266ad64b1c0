"""Runs in INT8: what `export --precision int8` writes and says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sidestep
from sidestep.cli.main import main
from sidestep.errors import RecipeError
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.targets.torch_plan import TorchPlan
from tests.plan.networks import plan_of
from tests.reference.plan import read_plan
from tests.runs.test_export import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = TINY["data"] | {"val_fraction": 0.1}
    return sidestep.train(from_dict(TINY | {"data": data}), tmp_path_factory.mktemp("runs") / "run")


def test_a_plan_on_bytes_lies_beside_its_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--precision", "int8", "--calibrate", "20"]) == 0
    said = capsys.readouterr().out
    document, tensors = read_plan(run / "best.int8.plan")
    report = json.loads((run / "best.int8.json").read_text())
    assert document["version"] == 5
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int8}
    assert report["calibrated_on"] == 20 and "calibrated on 20 images" in said
    assert report["num_bytes_quantised"] == (run / "best.int8.plan").stat().st_size
    assert [layer["name"] for layer in report["layers"] if layer["part"] == "head"] == ["backbone.fc.weight"]
    real = sidestep.evaluate(run)
    assert report["real"]["accuracy"] == pytest.approx(real.accuracy)
    assert report["real"]["gflops"] == pytest.approx(real.gflops)
    assert report["real"]["keep_rates"] == pytest.approx(real.keep_rates)


def test_shares_that_changed_are_those_of_the_test_split(run: Path) -> None:
    exported = sidestep.export_run(run, precision="int8", calibrate=16)
    assert exported.quantisation is not None
    opened = open_run(run, "best")
    split = data_of(opened, "test", None).test
    assert split is not None
    images = next(iter(split.eval_batches(batch_size=len(split)))).images
    from sidestep.plan.format import Plan

    document, tensors = read_plan(exported.path)
    real = TorchPlan(plan_of(opened.network))(images)
    quantised = TorchPlan(Plan(document=document, tensors=tensors))(images)
    labels = [torch.as_tensor(each.logits).argmax(dim=1) for each in (real, quantised)]
    changed = (labels[0] != labels[1]).double().mean().item()
    assert exported.quantisation.change.predictions == pytest.approx(changed)


def test_settings_without_effect_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="calibrate must go with precision int8"):
        sidestep.export_run(run, calibrate=5)
    with pytest.raises(RecipeError, match="precision int8 must go with to 'plan', got to 'onnx'"):
        sidestep.export_run(run, precision="int8", to="onnx")
    with pytest.raises(RecipeError, match="calibrate must be at least 1 image, got 0"):
        sidestep.export_run(run, precision="int8", calibrate=0)
    with pytest.raises(RecipeError, match="precision must be one of float32, int8, got 'int4'"):
        sidestep.export_run(run, precision="int4")  # type: ignore[arg-type]
