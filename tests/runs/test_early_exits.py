"""Early exits from recipe to budget, as a user would."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sidestep
from sidestep.cli.main import main
from sidestep.errors import RecipeError
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import load_recipe
from tests import paths
from tests.hasty import hasten

DIGITS = {"source": "digits", "image_size": 16, "limit": 300, "crop_padding": 1, "flip": False}
RANET = {
    "scale_list": [1, 2],
    "step": 2,
    "channels": 4,
    "growth": 4,
    "gr_factor": [2, 1],
    "bn_factor": [2, 1],
}
RECIPES: dict[str, dict[str, Any]] = {
    "ranet": {"method": {"name": "ranet"}, "model": {"name": "ranet", **RANET}},
    "attached": {
        "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
        "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1", "layer2"], "width": 8}},
    },
}


def recipe(folder: Path, name: str = "ranet", **training: Any) -> Path:
    phases = [{"name": "joint", "epochs": 2, "lr": 0.1}]
    values = {"data": DIGITS, "training": {"phases": phases, "batch_size": 50} | training, **RECIPES[name]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module", params=list(RECIPES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    assert main(["train", str(recipe(folder, request.param)), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["ranet", "msdnet"])
def test_the_small_recipes_cover_a_wide_range_around_a_static_resnet(name: str) -> None:
    """The figures of their headers."""
    recipes = paths.RECIPES
    costs = []
    for path in (f"{name}_small_cifar10.yaml", "static_resnet_small_cifar10.yaml"):
        network = untrained(load_recipe(recipes / path), num_classes=10)
        costs.append(sidestep.measure_cost(network, (32, 32)))
    exits, static = costs[0].exits, costs[1].full
    assert exits is not None and 0.15 < exits[0] / exits[-1] < 0.25
    assert 0.85 < costs[0].full / static < 1
    assert static == pytest.approx(26.4e6, rel=2e-3)


def report(run: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", *options]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_without_thresholds_all_images_leave_at_the_last_exit(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(run, capsys=capsys)
    assert found["exit_rates"][-1] == 1
    assert found["exit_accuracies"][-1] == pytest.approx(found["accuracy"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["task"] < rows[0]["train"]["task"]


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy"])
def test_a_budget_is_met_where_it_was_solved_and_felt_elsewhere(
    run: Path, criterion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--budget", "0.6", "--criterion", criterion)
    found = report(run, *options, "--split", "val", capsys=capsys)
    assert 0.5 < found["fraction_of_full"] <= 0.6
    assert max(found["exit_rates"]) < 1
    assert report(run, *options, capsys=capsys)["fraction_of_full"] < 0.8


def test_calibrated_thresholds_stay_in_the_checkpoint_and_the_cascade_obeys_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report(run, "--budget", "0.6", capsys=capsys)
    assert main(["calibrate", str(run), "--budget", "0.6", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["macs"] <= kept["budget_macs"]
    masked, cascade = (report(run, "--execution", name, capsys=capsys) for name in ("masked", "cascade"))
    assert masked["gflops"] == pytest.approx(before["gflops"])
    # A cascade does not compute what every exit says about all images.
    assert cascade.pop("exit_accuracies") is None and masked.pop("exit_accuracies") is not None
    assert (masked.pop("execution"), cascade.pop("execution")) == ("masked", "cascade")
    assert cascade.pop("gflops_std") == pytest.approx(masked.pop("gflops_std"))
    assert cascade == masked
    assert main(["evaluate", str(run)]) == 0
    assert "leave at each exit" in capsys.readouterr().out


def test_the_curve_is_kept_as_table_and_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", str(run), "--num-budgets", "4"]) == 0
    rows = list(csv.DictReader((run / "exits.csv").read_text().splitlines()))
    exits = sum(name.startswith("exit_rate_") for name in rows[0])
    assert [row["kind"] for row in rows] == ["anytime"] * exits + ["budgeted"] * 4
    budgeted = [row for row in rows if row["kind"] == "budgeted"]
    costs = [float(row["gflops"]) for row in budgeted]
    assert costs == sorted(costs)
    assert (run / "exits.png").read_bytes()[1:4] == b"PNG"
    assert "budgeted" in capsys.readouterr().out
    record = json.loads((run / "exits.json").read_text())
    assert (record["checkpoint"], record["criterion"]) == ("best", "confidence")
    last = record["points"][exits - 1]["point"]["macs"] / record["full_macs"]
    assert last == pytest.approx(float(rows[exits - 1]["fraction_of_full"]))
    assert len(record["points"][-1]["thresholds"]) == exits - 1
    page_file = run.parent / "page.md"
    assert main(["results", str(run), "--out", str(page_file)]) == 0
    assert page_file.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    page = page_file.read_text()
    for point in record["points"]:
        assert f"{100 * point['point']['accuracy']:.2f}" in page


@pytest.mark.slow
def test_bench_times_the_cascade(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.6))
    rows = sidestep.bench(run, batch_sizes=(4,), seconds=0.0).rows
    assert {"masked", "cascade", "static pytorch"} <= {row.runtime for row in rows}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "--budget", "0.001"], "budget must be between"),
        (
            ["evaluate", "--budget", "0.5", "--budget-gflops", "0.1"],
            "as a fraction of the full network",
        ),
        (["evaluate", "--budget", "0.5", "--criterion", "luck"], "criterion must be one of confidence, "),
        (["calibrate"], "budget must be given"),
        (["calibrate", "--budget", "0.001"], "budget must be between"),
        (["curve", "--num-budgets", "1"], "num_budgets must be at least 2, got 1"),
    ],
)
def test_wrong_budgets_are_one_sentence_and_leave_everything_as_it_was(
    command: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main([command[0], str(run), *command[1:]]) == 2
    captured = capsys.readouterr()
    *progress, sentence = captured.err.splitlines()
    assert message in sentence and sentence.startswith("sidestep: ")
    assert all(line.startswith(("reading ", "running ")) for line in progress)
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == files


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ranet", ["--model.prune=min"], "model.prune is no setting of model ranet; "),
        ("attached", ["--model={name: ranet}"], "name must be ranet for model ranet"),
        ("attached", ["--method={name: ranet}"], "name must be ranet for method ranet"),
        ("ranet", ["--model.init=x"], "model.init is no setting of model ranet; "),
        ("ranet", ["--model.num_classes=7"], "model.num_classes is no setting of model ranet; "),
        ("ranet", ["--model.step=1"], "step must be at least 2, got 1"),
        (
            "ranet",
            [f"--training.phases.0.{key}" for key in ("paths=uniform", "train=blocks")],
            "must be routed for ranet",
        ),
        ("ranet", ["--training.exits.temperature=2"], "temperature has no effect with distillation 0"),
        ("ranet", ["--training.exits.weighting=odd"], "weighting must be a value out of uniform, "),
        ("attached", ["--model.exits.at=[layer9]"], "at must name modules with units inside, got 'layer9'"),
        (
            "attached",
            ["--model.exits={}", "--method.sees_exits=true"],
            "method.sees_exits has no effect on a network without early exits",
        ),
        ("attached", ["--model.exits.at=[]"], "width has no effect without exits"),
        (
            "attached",
            ["--model.exits={}", "--training.exits.distillation=1"],
            "no effect on a network",
        ),
    ],
)
def test_wrong_recipes_are_refused_before_a_folder_is_made(
    name: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(recipe(tmp_path, name)), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_network_without_exits_has_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "attached", phases=[])
    static = ["--model.exits={}", "--method={name: static}"]
    assert main(["train", str(path), "--out", str(tmp_path / "run"), *static]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--budget", "0.5"]) == 2
    assert "a budget needs a network that decides for every image, by early exits" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--execution", "cascade"]) == 2
    assert "cascade execution needs early exits" in capsys.readouterr().err


def test_exits_learn_from_the_last_one(tmp_path: Path) -> None:
    path = recipe(tmp_path, exits={"distillation": 0.5, "weighting": "linear"}, max_steps=2)
    run = sidestep.train(path, tmp_path / "run")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["train"]["exit_distillation"] > 0


def test_exits_alone_can_be_trained_on_a_frozen_network(tmp_path: Path) -> None:
    phases = [{"name": "exits", "epochs": 1, "train": "exits", "lr": 0.1}]
    run = sidestep.train(recipe(tmp_path, "attached", phases=phases, max_steps=2), tmp_path / "run")
    network = sidestep.load(run, checkpoint="last")
    start = sidestep.train(recipe(tmp_path, "attached", phases=[]), tmp_path / "start")
    before = sidestep.load(start).state_dict()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("exits.") for key in changed)


def test_a_budget_is_one_number() -> None:
    with pytest.raises(RecipeError, match="one of them, got nothing"):
        sidestep.ExitBudget()
