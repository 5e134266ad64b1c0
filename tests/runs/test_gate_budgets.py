"""One network with gates from its recipe to budgets that nobody trained it for, as a user would."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, ExecutionError, RecipeError
from sidestep.plan.levels import dial_in
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.run_folder import open_run
from sidestep.targets.run_plan import run_plan
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.commands import refusal, report
from tests.serve.served import needs_biases

RECIPE: dict[str, Any] = {
    # Gates that start far apart, since this training is too short to part them.
    "method": {"name": "convnet_aig", "target": 0.7, "gate": {"bias": None}},
    "model": {"name": "cifar_resnet14"},
    "data": {"source": "digits", "image_size": 8, "crop_padding": 1, "flip": False, "limit": 600}
    | {"val_fraction": 0.3},
    "training": {"phases": [{"name": "joint", "epochs": 2, "lr": 0.05}], "batch_size": 32},
}


def trained(folder: Path, **method: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | ({"method": method} if method else {})))
    return sidestep.train(path, folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose curve was drawn."""
    made = trained(tmp_path_factory.mktemp("gates"))
    assert main(["curve", str(made), "--num-budgets", "5"]) == 0
    return made


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_budget_is_met_on_the_validation_split(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for budget in (0.4, 0.8):
        for options in ([], ["--per-unit"]):
            asked = ("--budget", str(budget), "--split", "val", *options)
            found = report(run, *asked, capsys=capsys)["fraction_of_full"]
            assert 0.98 * budget <= found <= budget
    by_gflops = report(run, "--budget-gflops", str(0.5 * gflops(run)), "--split", "val", capsys=capsys)
    assert 0.49 <= by_gflops["fraction_of_full"] <= 0.5


def gflops(run: Path) -> float:
    return 2e-9 * open_run(run, "best").cost.full


def test_halves_of_the_test_split_are_solved_for_each_other(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--budget", "0.6", "--calibration", "halves")
    found = report(run, *asked, capsys=capsys)
    assert found["fraction_of_full"] == pytest.approx(0.6, abs=0.05)
    assert found["num_images"] == report(run, capsys=capsys)["num_images"]
    text = refusal("evaluate", str(run), *asked, "--split", "val", capsys=capsys)
    assert "calibration halves must go with a budget" in text


def test_a_calibrated_bias_is_kept_and_everything_runs_with_it(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report(own, "--split", "val", capsys=capsys)
    assert main(["calibrate", str(own), "--budget", "0.5"]) == 0
    assert "bias of gates" in capsys.readouterr().out
    found = report(own, "--split", "val", capsys=capsys)
    assert 0.49 <= found["fraction_of_full"] <= 0.5 != before["fraction_of_full"]
    images = torch.randn(16, 3, 8, 8)
    kept, opened = sidestep.load(own), open_run(own, "best")
    with torch.no_grad():
        torch.testing.assert_close(kept(images).logits, opened.network(images).logits)
    # Solved again from the network as it was trained, not on top of what was kept.
    again = report(own, "--split", "val", "--budget", "0.8", capsys=capsys)
    assert 0.78 <= again["fraction_of_full"] <= 0.8


def test_the_curve_rises_and_is_kept_in_the_run_and_in_the_checkpoint(run: Path) -> None:
    rows = list(csv.DictReader((run / "budgets.csv").read_text().splitlines()))
    assert len(rows) == 5 and float(rows[-1]["fraction_of_full"]) > 1
    assert json.loads((run / "budgets.json").read_text())["by_dial"]
    frontier = open_run(run, "best").frontier
    assert frontier is not None
    macs = [level.macs for level in frontier.levels]
    wanted = [float(row["budget_fraction"]) * frontier.full_macs for row in rows]
    assert macs == sorted(macs) and macs == pytest.approx(wanted, rel=0.02)
    accuracies = [level.accuracy for level in frontier.levels]
    assert accuracies == [float(row["accuracy"]) for row in rows]
    assert all(float(row["image_bits"]) >= 0 for row in rows)


def test_python_takes_a_budget_when_it_loads_and_in_a_call(run: Path) -> None:
    images = torch.randn(32, 3, 8, 8)
    network, opened = sidestep.load(run), open_run(run, "best")
    for budget in (0.5, 0.9):
        with torch.no_grad():
            called = network(images, budget=budget)
            loaded = sidestep.load(run, budget=budget)(images)
        torch.testing.assert_close(called.logits, loaded.logits)
        assert opened.frontier is not None
        opened.turn(opened.frontier.at(budget).biases)
        with torch.no_grad():
            torch.testing.assert_close(called.logits, opened.network(images).logits)


@needs_biases
@pytest.mark.parametrize("calibrated", [False, True])
def test_plans_have_the_budgets_and_the_engine_agrees_at_each(
    own: Path, calibrated: bool, tmp_path: Path
) -> None:
    sidestep_engine = pytest.importorskip("sidestep_engine")
    if calibrated:
        sidestep.calibrate(own, ExitBudget(fraction=0.7))
    plan = tmp_path / "run.plan"
    assert main(["export", str(own), "--out", str(plan)]) == 0
    network, frontier = sidestep.load(own), open_run(own, "best").frontier
    assert frontier is not None
    assert [level.macs for level in dial_in(plan.read_bytes())] == [level.macs for level in frontier.levels]
    engine = sidestep_engine.Engine.load(plan, precision="float32")
    images = torch.randn(64, 3, 8, 8)
    for budget in (None, 0.4, 0.75, 1.2):
        with torch.no_grad():
            wanted = network(images, budget=budget)
        found = engine(images.numpy(), budget=budget)
        np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)
        np.testing.assert_array_equal(found.options, wanted.decisions.paths())


@needs_biases
def test_a_plan_is_run_within_a_budget(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Path(sidestep.export_run(own).path)
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    (full,), (least,) = (run_plan(plan, [picture], budget=budget) for budget in (2.0, 0.25))
    assert full.executed == 6 and least.executed < full.executed
    assert "the plan's smallest" in refusal("run", str(plan), str(picture), "--budget", "0.01", capsys=capsys)
    assert "above 0" in refusal("run", str(plan), str(picture), "--budget", "0", capsys=capsys)


@needs_biases
def test_masked_gathered_and_engine_report_the_same_at_a_budget(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        report(run, "--budget", "0.6", "--execution", *name.split(), capsys=capsys)
        for name in ("masked", "gathered", "engine --precision float32")
    ]
    for each in found[1:]:
        assert each["accuracy"] == pytest.approx(found[0]["accuracy"], abs=0.01)
        assert each["gflops"] == pytest.approx(found[0]["gflops"], rel=0.01)


def test_packages_carry_biases_and_budgets(own: Path, tmp_path: Path) -> None:
    sidestep.calibrate(own, ExitBudget(fraction=0.7))
    place = f"local-dir:{tmp_path / 'package'}"
    sidestep.push(own, place)
    images = torch.randn(8, 3, 8, 8)
    there, here = sidestep.load(place), sidestep.load(own)
    with torch.no_grad():
        for budget in (None, 0.4):
            torch.testing.assert_close(
                there(images, budget=budget).logits, here(images, budget=budget).logits
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.01"], "with every block skipped that can be"),
        (["--budget", "0.6", "--criterion", "margin"], "have no effect on a network without early exits"),
        (["--max-drop", "1"], "max-drop and risk are those of early exits"),
        (["--per-unit"], "--per-unit has no effect without a budget"),
    ],
)
def test_a_bad_budget_is_refused(
    options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal("evaluate", str(run), *options, capsys=capsys)


def test_a_run_that_has_kept_no_budgets_says_how_to_have_some(own: Path) -> None:
    path = own / "best.safetensors"
    before = load_checkpoint(path)

    def change(**values: Any) -> None:
        save_checkpoint(path, Checkpoint(tensors=before.tensors, values=before.values | values))

    change(frontier=None)
    with pytest.raises(ExecutionError, match=r"`sidestep curve .*` keeps some"):
        sidestep.load(own, budget=0.5)
    change(biases=[0.0])
    with pytest.raises(CheckpointError, match="must have a bias for every unit"):
        sidestep.load(own)
    change(frontier={"full_macs": 1.0, "levels": []})
    with pytest.raises(CheckpointError, match="draw the curve again"):
        sidestep.load(own)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "static"}, "got a static one"),
        ({"name": "fixed_path", "num_units": 2, "order": "first"}, "every unit is decided for good"),
        ({"name": "act"}, "got a network that halts"),
    ],
)
def test_networks_that_have_no_gates_are_told_so(
    method: dict[str, Any], message: str, tmp_path: Path
) -> None:
    phases = [{"name": "joint", "epochs": 1, "lr": 0.05}]
    small = {"data": RECIPE["data"] | {"limit": 100}, "model": {"name": "cifar_resnet8"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(small | {"method": method, "training": {"phases": phases, "batch_size": 32}})
    )
    made = sidestep.train(path, tmp_path / "run")
    for command in (sidestep.calibrate, lambda run, budget: sidestep.evaluate(run, budget=budget)):
        with pytest.raises((ExecutionError, RecipeError), match=message):
            command(made, ExitBudget(fraction=0.5))


def test_gates_by_certainty_have_a_dial_and_no_image_leaves_at_their_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPE | {
        "method": {"name": "certainty", "shares": [1, 0, 1, 0.5, 0.6, 0.4]},
        "model": {"name": "cifar_resnet14", "exits": {"at": ["layer2.0"], "width": 8}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    made = sidestep.train(path, tmp_path / "run")
    found = report(made, "--budget", "0.6", "--split", "val", capsys=capsys)
    assert 0.58 <= found["fraction_of_full"] <= 0.6
    assert main(["curve", str(made), "--num-budgets", "3"]) == 0
    assert json.loads((made / "budgets.json").read_text())["by_dial"] and not (made / "exits.json").exists()
    assert main(["calibrate", str(made), "--budget", "0.7"]) == 0
    assert "bias of gates" in capsys.readouterr().out
    found = report(made, "--split", "val", "--execution", "gathered", capsys=capsys)
    assert 0.68 <= found["fraction_of_full"] <= 0.7 and found["exit_rates"] is None
    told = refusal("evaluate", str(made), "--execution", "cascade", capsys=capsys)
    assert "needs early exits at which images leave, got a network without; use gathered" in told
