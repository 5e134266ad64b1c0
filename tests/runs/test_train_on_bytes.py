"""Phases that train a network as if it were on bytes: what they leave, and what the export makes of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import sidestep
from sidestep.errors import CheckpointError, InterruptedRunError, RecipeError
from sidestep.execution.execution import masked
from sidestep.execution.on_bytes import OnBytes
from sidestep.plan.format import Plan, lists_of_ops, stands_for_real
from sidestep.runs.recipe import Recipe, from_dict
from sidestep.runs.run_data import data_of
from sidestep.runs.run_folder import open_run
from sidestep.runs.train import train
from sidestep.targets.torch_plan import TorchPlan
from sidestep.training.checkpoint import load_checkpoint, save_checkpoint
from sidestep.training.state import layout_of
from tests.reference.plan import read_plan
from tests.training.test_fit import assert_same_run, at_step

DATA = {"source": "digits", "image_size": 16, "crop_padding": 1, "flip": False, "limit": 500}
GATED = {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"}
FIRST = {"name": "first", "epochs": 6, "lr": 0.1, "schedule": "cosine"}
LAST = {"name": "last", "epochs": 1, "lr": 0.01, "schedule": "cosine"}


def recipe_of(*phases: dict[str, Any], method: dict[str, Any] = GATED, **others: Any) -> Recipe:
    data, training = DATA | others.pop("data", {}), {"batch_size": 32, **others}
    return from_dict(
        {
            "name": "tiny",
            "method": method,
            "model": {"name": "cifar_resnet8"},
            "data": data,
            "training": {"phases": list(phases), **training},
        }
    )


def on_bytes(phase: dict[str, Any]) -> dict[str, Any]:
    return phase | {"quantize": "int8"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs on the digits, of which one has its last epoch on bytes."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train(recipe_of(FIRST, last), folder / name)
        for name, last in (("plain", LAST), ("bytes", on_bytes(LAST)))
    }


@pytest.mark.slow
def test_a_run_on_bytes_loses_no_more_than_one_without(runs: dict[str, Path]) -> None:
    reports = {name: sidestep.export_run(run, precision="int8").quantisation for name, run in runs.items()}
    plain, trained = reports["plain"], reports["bytes"]
    assert plain is not None and trained is not None
    assert plain.real.accuracy > 0.8
    # An image of the test split is 0.3 points.
    assert trained.quantised.accuracy >= plain.quantised.accuracy - 0.004
    assert trained.quantised.accuracy >= trained.real.accuracy - 0.004
    # Nothing stays real for its own error.
    assert all(layer.part != "trunk" for layer in trained.layers if layer.is_real)


@pytest.mark.slow
def test_the_plan_says_what_the_network_on_bytes_says(runs: dict[str, Path]) -> None:
    exported = sidestep.export_run(runs["bytes"], precision="int8")
    document, tensors = read_plan(exported.path)
    opened = open_run(runs["bytes"], "best")
    layout = layout_of(opened.values)
    assert layout is not None
    scales = {op["scale"] for step in document["steps"] for op in step.get("ops", ()) if "scale" in op}
    assert scales <= {each.scale for each in layout.ranges}
    split = data_of(opened, "test", None).test
    assert split is not None
    images = next(iter(split.eval_batches(batch_size=len(split)))).images
    with torch.no_grad():
        said = OnBytes(layout).run(opened.network, images, execution=masked)
        real = opened.network(images)
    plan = TorchPlan(Plan(document=document, tensors=tensors))(images)
    logits, options = torch.as_tensor(plan.logits), torch.as_tensor(plan.options)
    same = (said.decisions.paths() == options).all(dim=1)
    assert same.double().mean() > 0.98
    assert (said.logits.argmax(dim=1) == logits.argmax(dim=1)).double().mean() > 0.99
    off, rounding = ((each - said.logits)[same].square().mean().sqrt() for each in (logits, real.logits))
    assert off < 0.1 * rounding
    stored = {op["weight"] for ops in lists_of_ops(document["steps"]) for op in ops if stands_for_real(op)}
    assert len(layout.stored) == len(stored) > 0


@pytest.mark.slow
def test_ranges_learn(runs: dict[str, Path]) -> None:
    layouts = [
        layout_of(load_checkpoint(runs[name] / "last.safetensors").values) for name in ("bytes", "plain")
    ]
    assert layouts[1] is None and layouts[0] is not None
    # Ranges of a calibration end in a byte that was seen: training has moved them.
    assert len({each.scale for each in layouts[0].ranges}) == len(layouts[0].ranges)
    before = sidestep.export_run(runs["plain"], precision="int8")
    calibrated = {
        op.get("scale") for step in read_plan(before.path)[0]["steps"] for op in step.get("ops", ())
    }
    assert not calibrated & {each.scale for each in layouts[0].ranges}


SHORT = ({"name": "first", "epochs": 1, "lr": 0.05}, on_bytes({"name": "last", "epochs": 2, "lr": 0.01}))
FEW: dict[str, Any] = {"data": {"limit": 100}, "ema_decay": 0.9}


def test_an_interrupted_phase_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe_of(*SHORT, **FEW), tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(5, lambda: signal.raise_signal(signal.SIGINT), patch)
        with pytest.raises(InterruptedRunError):
            train(recipe_of(*SHORT, **FEW), tmp_path / "run")
    assert layout_of(load_checkpoint(tmp_path / "run" / "last.safetensors").values) is not None
    train(recipe_of(*SHORT, **FEW), tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_what_cannot_be_on_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="quantize of phase 'then' must be int8 as in 'last' before it"):
        recipe_of(on_bytes(LAST), {"name": "then", "epochs": 1, "lr": 0.1})
    with pytest.raises(RecipeError, match="quantize of phase 'last' needs a validation split"):
        train(recipe_of(on_bytes(LAST), data={"val_fraction": 0.0}), tmp_path / "run")
    with pytest.raises(
        RecipeError, match="quantize of phase 'last' needs a network that INT8 plans can express"
    ):
        train(recipe_of(on_bytes(LAST), method={"name": "sact"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_damaged_ranges_are_named(runs: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(runs["bytes"] / "best.safetensors")
    checkpoint.values["quantized"]["ranges"][0]["scale"] = 0.0
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "best.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="quantized of a checkpoint must be ranges of bytes"):
        sidestep.export_run(tmp_path / "run", precision="int8")
