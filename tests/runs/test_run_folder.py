"""What a run folder allows: started anew, resumed, refused, read back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sidestep
from sidestep.errors import (
    CheckpointError,
    DataError,
    OutputError,
    RecipeError,
    RunLockedError,
    TrainingError,
)
from sidestep.runs.recipe import from_dict
from sidestep.runs.run_folder import differences
from sidestep.runs.run_lock import locked

TINY: dict[str, Any] = {
    "method": {"name": "rdi_net", "target": 0.6, "gate_mode": "hard", "router": {"dim": 8}},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 8, "limit": 64, "workers": 0, "flip": False},
    "training": {"batch_size": 32, "phases": [{"name": "joint", "epochs": 1, "lr": 0.05}]},
}


def changed(**sections: dict[str, Any]) -> sidestep.Recipe:
    return from_dict({name: {**TINY[name], **sections.get(name, {})} for name in TINY})


def diverging() -> sidestep.Recipe:
    return changed(training={"phases": [{"name": "joint", "epochs": 1, "lr": 1e30}]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sidestep.train(changed(), tmp_path_factory.mktemp("run") / "run")


def test_a_run_that_failed_before_its_first_checkpoint_starts_again_with_its_cause(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TrainingError, match="loss must be finite"):
            sidestep.train(diverging(), tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(TrainingError, match="loss must be finite"):
            sidestep.train(diverging(), tmp_path / "run", resume=resume)
    events = {path.name for path in (tmp_path / "run").iterdir() if path.name.startswith("events")}
    assert len(events) <= 2
    assert (sidestep.train(changed(), tmp_path / "run") / "report.json").is_file()


def test_a_folder_with_a_checkpoint_or_with_files_of_others_is_not_started_in(
    run: Path, tmp_path: Path
) -> None:
    for folder in (run, tmp_path):
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(RecipeError, match="must be empty or new"):
            sidestep.train(changed(), folder)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_nothing_is_left_where_a_recipe_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(sidestep.SidestepError):
        sidestep.train(changed(training={"batch_size": 5000}), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x", Path("/dev/null/x")):
        with pytest.raises(OutputError, match=r"run folder .* could not be made"):
            sidestep.train(changed(), place)


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(RunLockedError, match="must have one writer, and process"):
        sidestep.train(changed(), tmp_path / "run")


def test_what_is_not_learnt_may_change_before_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = changed(data={"workers": 1})
    assert sidestep.train(recipe, tmp_path / "run", resume=True) == tmp_path / "run"
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"]["workers"] == 1


def test_what_is_learnt_may_not_and_is_named(run: Path) -> None:
    recipe = changed(method={"target": 0.5}, training={"seed": 3})
    with pytest.raises(RecipeError) as caught:
        sidestep.train(recipe, run, resume=True)
    assert "method.target 0.6 there and 0.5 here, training.seed 0 there and 3 here" in str(caught.value)


def test_a_moved_data_folder_is_the_same_data_and_another_one_is_not(tmp_path: Path) -> None:
    from PIL import Image

    for place, labels in (("here", "ab"), ("there", "ab"), ("other", "aab")):
        for split in ("train", "test"):
            for index in range(12):
                label = labels[index % len(labels)]
                path = tmp_path / place / split / label / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(path)
    data = {"image_size": None, "limit": None, "crop_padding": 0}
    training = {"batch_size": 4}

    def at(place: str) -> sidestep.Recipe:
        return changed(data={**data, "source": str(tmp_path / place)}, training=training)

    sidestep.train(at("here"), tmp_path / "run")
    sidestep.train(at("there"), tmp_path / "run", resume=True)
    with pytest.raises(DataError, match=r"source .*other"):
        sidestep.train(at("other"), tmp_path / "run", resume=True)


def test_differences_say_both_values() -> None:
    assert differences(changed(), changed()) == []
    assert differences(changed(), changed(model={"name": "cifar_resnet20"})) == [
        "model.name 'cifar_resnet8' there and 'cifar_resnet20' here"
    ]


def test_a_loaded_network_lets_images_leave_where_calibrate_has_said(tmp_path: Path) -> None:
    recipe = changed(model={"exits": {"at": ["layer1"], "width": 8}})
    run = sidestep.train(recipe, tmp_path / "run")
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert sidestep.load(run).exit_rule is None
        everyone = sidestep.load(run)(images)
        sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.8))
        network = sidestep.load(run)
        assert isinstance(network.exit_rule, sidestep.ExitRule)
        masked, cascade = network(images), network(images, execution=sidestep.cascade)
    assert masked.decisions.exits is not None and masked.decisions.exits[:, 0].any()
    assert torch.equal(masked.decisions.exits, cascade.decisions.exits)
    assert torch.allclose(masked.logits, cascade.logits, atol=1e-5)
    assert everyone.decisions.exits is not None and not everyone.decisions.exits[:, 0].any()
    network.exit_rule = None
    with pytest.raises(sidestep.ExecutionError, match=r"network\.exit_rule"):
        network(images, execution=sidestep.cascade)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "must be a run folder, and there is none; `sidestep train RECIPE"),
        (lambda path: path.write_text("x"), "must be a run folder, got a file"),
        (lambda path: path.mkdir(), "must be a run folder with best.safetensors, and has none"),
        (
            lambda path: (path.mkdir(), (path / "recipe.yaml").write_text("x")),
            "its training ended before; go on with",
        ),
    ],
)
def test_what_is_no_run_is_said_to_be_none(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        sidestep.load(tmp_path / "run")


@pytest.mark.parametrize("name", ["report.json", "environment.json", "recipe.yaml"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"best": ', "\x00\x01", "null"])
def test_results_of_a_damaged_run_name_the_file(name: str, content: str, run: Path, tmp_path: Path) -> None:
    from sidestep.results.page import results_page

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged .*; restore it"):
        results_page(None, [tmp_path / "run"])


REPORTED = {"accuracy": 0.5, "gflops": 1.0, "fraction_of_full": 0.5, "executed_mean": 1.0}
TIMED = {"runtime": "engine", "precision": "float32", "batch_size": 1, "ms_per_image": 1.0}
POINT = {"accuracy": 0.5, "macs": 1.0, "exit_rates": [1.0], "ms": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("report.json", {"best": REPORTED, "last": REPORTED | change})
            for change in ({"executed_mean": "x"}, {"accuracy": {}}, {"gflops": None}, {"keep_rates": ["a"]})
        ),
        *(("bench.json", {"rows": [TIMED | change]}) for change in ({"ms_per_image": {}}, {"runtime": 3})),
        *(
            ("exits.json", {"checkpoint": "best", "temperatures": [1.0], "full_macs": 1.0} | change)
            for change in ({"points": 3}, {"points": [{"kind": "anytime", "point": POINT | {"macs": "x"}}]})
        ),
        ("budgets.json", {"full_macs": "x", "budgets_macs": [], "points": []}),
        ("environment.json", {"hardware": 3, "versions": {}}),
    ],
)
def test_numbers_that_are_none_name_the_file(name: str, value: Any, run: Path, tmp_path: Path) -> None:
    from sidestep.results.page import results_page

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(json.dumps(value))
    for read in (
        lambda: results_page(None, [tmp_path / "run"]),
        lambda: sidestep.push(tmp_path / "run", f"local-dir:{tmp_path / 'package'}"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} is damaged .*; restore it"):
            read()
    assert not (tmp_path / "package").exists()


def test_a_torn_row_of_metrics_is_left_out(run: Path, tmp_path: Path) -> None:
    from sidestep.results.page import results_page

    shutil.copytree(run, tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.jsonl").read_text()
    page = results_page(None, [tmp_path / "run"])
    for torn in ('{"phase": "joint", "epo', "\x00" * 20, "[1]", "{}"):
        (tmp_path / "run" / "metrics.jsonl").write_text(whole + torn)
        assert results_page(None, [tmp_path / "run"]) == page
    sidestep.train(changed(), tmp_path / "run", resume=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [json.loads(whole)["step"]]
