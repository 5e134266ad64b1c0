"""One network for all budgets from recipe to plan, as a user would."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sidestep
from sidestep.cli.main import main
from sidestep.errors import ExecutionError, RecipeError
from sidestep.plan.levels import levels_in
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.run_folder import open_run
from tests.commands import refusal, report

DATA = {"source": "digits", "image_size": 16, "crop_padding": 1, "flip": False, "limit": 600}
# Gates that start far apart, since these trainings are too short to part them.
GATES = {"name": "convnet_aig", "target": 0.7, "gate": {"bias": None}}
RECIPES: dict[str, dict[str, Any]] = {
    "shares": {
        "method": GATES | {"gate_mode": "share", "share": {"memory": 0.9}, "budgets": {"low": 0.4}},
        "epochs": 4,
    },
    "exits": {
        "method": {"name": "rdi_net", "target": 0.7, "router": {"dim": 8}, "srm": {"alpha": 0}}
        | {"gate_mode": "hard", "cost_scope": "network", "cost_weight": 10, "budgets": {"low": 0.5}},
        "exits": {"at": ["layer1", "layer2"], "width": 8},
        "epochs": 2,
    },
}


def trained(name: str, folder: Path) -> Path:
    values = RECIPES[name]
    exits = {"exits": values["exits"]} if "exits" in values else {}
    phases = [{"name": "joint", "epochs": values["epochs"], "lr": 0.05, "schedule": "cosine"}]
    recipe = {
        "method": values["method"],
        "model": {"name": "cifar_resnet8" if exits else "cifar_resnet14", **exits},
        "data": DATA,
        "training": {"phases": phases, "batch_size": 20},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["train", str(path), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("shares", tmp_path_factory.mktemp("shares"))


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("exits", tmp_path_factory.mktemp("exits"))


@pytest.fixture
def own(shares: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(shares, tmp_path / "run"))


def test_an_evaluation_has_the_budget_that_it_asks_for(
    shares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The best one is from before gates came to rest. With so few steps statistics of BatchNorm still move.
    found = [
        report(shares, "--checkpoint", "last", "--budget", str(budget), capsys=capsys)["fraction_of_full"]
        for budget in (0.5, 0.7, 0.9)
    ]
    assert found == pytest.approx([0.5, 0.7, 0.9], abs=0.15)
    # All units execute with the full budget, and routers come on top.
    full = report(shares, "--budget", "1", capsys=capsys)
    assert full["keep_rates"] != [1.0] * 6
    assert report(shares, "--budget-gflops", "9", capsys=capsys)["keep_rates"] == [1.0] * 6
    alone = report(shares, "--checkpoint", "last", capsys=capsys)["fraction_of_full"]
    assert found[0] < alone < found[2]


def test_masked_gathered_and_engine_agree_at_a_budget(
    shares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sidestep_engine")
    found = [
        report(shares, "--budget", "0.6", "--execution", *name.split(), capsys=capsys)
        for name in ("masked", "gathered", "engine --precision float32")
    ]
    for each in found:
        each.pop("execution")
    assert found[0] == found[1]
    assert found[2]["accuracy"] == pytest.approx(found[0]["accuracy"], abs=0.01)
    assert found[2]["gflops"] == pytest.approx(found[0]["gflops"], rel=0.01)


def test_a_calibrated_budget_is_met_on_the_validation_split_and_kept(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "asked" not in open_run(own, "best").values
    assert main(["calibrate", str(own), "--budget", "0.6"]) == 0
    said = re.search(r"routers are asked for.*?(\d\.\d{4})", capsys.readouterr().out, re.DOTALL)
    assert said is not None
    found = report(own, "--split", "val", capsys=capsys)["fraction_of_full"]
    assert 0.5 < found <= 0.6
    kept = sidestep.load(own)
    images = torch.randn(4, 3, 16, 16)
    opened = open_run(own, "best")
    with torch.no_grad():
        torch.testing.assert_close(kept(images).logits, opened.network(images).logits)
    assert opened.values["asked"] == pytest.approx(float(said[1]), abs=1e-4)
    assert main(["export", str(own), "--out", str(own / "kept.plan")]) == 0


def test_training_leaves_a_curve_of_tenths(shares: Path) -> None:
    rows = list(csv.DictReader((shares / "budgets.csv").read_text().splitlines()))
    assert [float(row["budget_fraction"]) for row in rows] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_a_phase_cannot_move_what_training_draws(
    tmp_path: Path, shares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = "--training.phases.0.ramps={target: {start: 1, end: 0.5}}"
    command = ("train", str(shares / "recipe.yaml"), "--out", str(tmp_path / "run"), ramp)
    text = refusal(*command, capsys=capsys)
    assert "target has no effect in phase 'joint' of a network for all budgets" in text
    assert not (tmp_path / "run").exists()


def test_the_curve_of_budgets_is_kept(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", str(own), "--num-budgets", "4"]) == 0
    assert "of full" in capsys.readouterr().out
    rows = list(csv.DictReader((own / "budgets.csv").read_text().splitlines()))
    assert [float(row["asked"]) for row in rows] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    costs = [float(row["fraction_of_full"]) for row in rows]
    assert costs == sorted(costs) and costs[-1] > 1
    assert [float(row["budget_fraction"]) for row in rows] == pytest.approx(costs, abs=0.15)
    record = json.loads((own / "budgets.json").read_text())
    assert record["checkpoint"] == "best" and len(record["points"]) == 4
    assert (own / "budgets.png").read_bytes()[1:4] == b"PNG"


def test_a_plan_has_one_budget_and_computes_nothing_of_others(own: Path) -> None:
    sizes = []
    for budget in (0.5, 0.9):
        out = own / f"{budget}.plan"
        assert main(["export", str(own), "--budget", str(budget), "--out", str(out)]) == 0
        sizes.append(out.stat().st_size)
    assert (own / "0.5.plan").read_bytes() != (own / "0.9.plan").read_bytes()
    # Digits of thresholds aside.
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_python_loads_a_network_at_a_budget(shares: Path) -> None:
    images = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        rates = [
            float(sidestep.load(shares, budget=budget)(images).decisions.execution().mean())
            for budget in (0.45, 0.95)
        ]
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.2"], "budget must be at least 0.4"),
        (["--budget", "1.2"], "budget must be a fraction of the full network's MACs in (0, 1], got 1.2"),
        (["--budget", "0.6", "--criterion", "margin"], "have no effect on a network without early exits"),
        (["--max-drop", "1"], "max-drop and risk are those of early exits"),
    ],
)
def test_a_bad_budget_is_refused(
    options: list[str], message: str, shares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal("evaluate", str(shares), *options, capsys=capsys)


def test_budgets_that_images_refuse_are_named_with_what_they_cost(
    shares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidestep.runs.at_budget.asked_for", None)
    with pytest.raises(RecipeError, match="MACs per image here, which the smallest one costs"):
        sidestep.calibrate(shares, ExitBudget(fraction=0.1))


def test_exits_and_routers_share_one_budget(exits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(exits, "--budget", "0.6", "--split", "val", capsys=capsys)
    assert 0.4 < found["fraction_of_full"] <= 0.6
    calibration = sidestep.calibrate(exits, ExitBudget(fraction=0.6))
    assert isinstance(calibration.asked, float) and 0.5 <= calibration.asked <= 1  # type: ignore[union-attr]
    kept = report(exits, "--split", "val", capsys=capsys)
    assert kept["gflops"] == pytest.approx(found["gflops"])
    assert kept["accuracy"] == pytest.approx(calibration.accuracy)  # type: ignore[union-attr]
    cascade = report(exits, "--split", "val", "--execution", "cascade", capsys=capsys)
    assert cascade["gflops"] == pytest.approx(found["gflops"])
    assert main(["curve", str(exits), "--num-budgets", "3"]) == 0
    points = json.loads((exits / "exits.json").read_text())["points"]
    assert [point["kind"] for point in points] == ["anytime"] * 3 + ["budgeted"] * 3
    assert all(0.5 <= point["asked"] <= 1 for point in points)
    # Thresholds of other budgets belong to other gates than the plan's.
    assert main(["export", str(exits)]) == 0
    assert levels_in((exits / "best.plan").read_bytes()) == []
    with pytest.raises(ExecutionError, match="a budget of early exits is solved on images"):
        sidestep.load(exits, budget=0.6)


def test_exits_and_routers_know_no_drop(exits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal("evaluate", str(exits), "--max-drop", "1", capsys=capsys)
    assert "max-drop and risk know no budgets of routers" in text
