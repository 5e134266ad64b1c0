"""Packages: a run written into a folder and loaded again is the same, and what is wrong is refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, SidestepError
from sidestep.files import write_file
from sidestep.hub.package import read_config, read_package
from sidestep.runs.push import portable_recipe
from sidestep.runs.recipe import from_dict
from tests.hasty import hasten

TINY: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "hard"},
    "model": {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 4}},
    "data": {"source": "digits", "image_size": 16, "limit": 100, "crop_padding": 1, "flip": False},
    "training": {"phases": [{"name": "joint", "epochs": 1, "lr": 0.05}], "batch_size": 32, "max_steps": 1},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with thresholds, a curve, and static weights that it began with."""
    folder = tmp_path_factory.mktemp("runs")
    static: dict[str, Any] = {**TINY, "method": {"name": "static"}, "model": {"name": "cifar_resnet8"}}
    weights = sidestep.train(from_dict(static), folder / "static") / "best.safetensors"
    model = {**TINY["model"], "init": str(weights)}
    made = sidestep.train(from_dict({**TINY, "model": model}), folder / "run")
    sidestep.calibrate(made, sidestep.ExitBudget(fraction=0.9))
    sidestep.curve(made, num_budgets=3)
    return made


@pytest.fixture(scope="module")
def package(run: Path) -> Path:
    folder = run.parent / "package"
    assert sidestep.push(run, f"local-dir:{folder}").place == f"local-dir:{folder}"
    return folder


@pytest.fixture
def changed(package: Path, tmp_path: Path) -> Path:
    """Return a copy of the package, to be changed."""
    return Path(shutil.copytree(package, tmp_path / "copy"))


def test_what_is_loaded_from_a_package_is_the_run(run: Path, package: Path, cache: Path) -> None:
    before, after = sidestep.load(run), sidestep.load(f"local-dir:{package}")
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(after(images).logits, before(images).logits, rtol=0, atol=0)
    assert after.exit_rule == before.exit_rule and before.exit_rule is not None
    assert sidestep.evaluate(f"local-dir:{package}") == sidestep.evaluate(run)
    assert sorted(path.name for path in package.iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert len(list(cache.glob("packages/*/*"))) == 1


@pytest.mark.slow
def test_every_command_takes_a_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    place = f"local-dir:{package}"
    page = tmp_path / "page.md"
    assert main(["evaluate", place, "--json"]) == 0
    assert main(["curve", place, "--num-budgets", "2"]) == 0
    assert main(["bench", place, "--book", "pytorch", "--seconds", "0", "--json"]) == 0
    assert main(["export", place, "--out", str(tmp_path / "network.plan")]) == 0
    assert main(["results", place, "--out", str(page)]) == 0
    assert main(["ledger", place]) == 0
    assert "| package | rdi_net | 0 |" in page.read_text()


def test_a_package_is_a_member_and_a_candidate(run: Path, tmp_path: Path) -> None:
    place = f"local-dir:{tmp_path / 'static'}"
    sidestep.push(run.parent / "static", place)
    data = {"source": "digits", "limit": 100}
    made = sidestep.make_cascade([place, place], tmp_path / "both", data=data)
    assert made.members == ["static", "static-2"]
    sidestep.push(made.folder, f"local-dir:{tmp_path / 'pushed'}")
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        again = sidestep.load(f"local-dir:{tmp_path / 'pushed'}")(images)
        torch.testing.assert_close(again.logits, sidestep.load(made.folder)(images).logits, rtol=0, atol=0)
    assert str(tmp_path) not in (tmp_path / "pushed" / "config.json").read_text()
    found = sidestep.find_frontier([place, str(run.parent / "static")], data=data, scores=tmp_path / "scores")
    assert found.failed == {}


def test_a_network_for_all_budgets_keeps_the_one_it_was_calibrated_for(tmp_path: Path) -> None:
    method = {"name": "rdi_net", "router": {"dim": 8}, "target": 0.6, "budgets": {"low": 0.4}}
    training = {**TINY["training"], "max_steps": 2}
    values = {**TINY, "method": method, "model": {"name": "cifar_resnet8"}, "training": training}
    run, place = sidestep.train(from_dict(values), tmp_path / "run"), f"local-dir:{tmp_path / 'package'}"
    solved = sidestep.calibrate(run, sidestep.ExitBudget(gflops=0.01))
    sidestep.push(run, place)
    config = read_config(tmp_path / "package")
    assert config["sidestep"]["asked"] == solved.point.asked
    curves = config["sidestep"]["budgets"]
    assert curves["exits"] is None and len(curves["routers"]["points"]) > 1
    assert "| test | a budget of " in (tmp_path / "package" / "README.md").read_text()
    assert sidestep.evaluate(place) == sidestep.evaluate(run)


def test_a_push_that_is_interrupted_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "README.md":
            raise KeyboardInterrupt
        write_file(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("sidestep.hub.package.write_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sidestep.push(run, f"local-dir:{tmp_path / 'package'}")
    assert list(tmp_path.iterdir()) == []
    sidestep.push(run, f"local-dir:{tmp_path / 'package'}")


def test_what_commands_keep_lies_in_the_cache(package: Path, cache: Path) -> None:
    place, before = f"local-dir:{package}", {path: path.read_bytes() for path in package.iterdir()}
    solved = sidestep.calibrate(place, sidestep.ExitBudget(fraction=1.0, criterion="entropy"))
    assert {path: path.read_bytes() for path in package.iterdir()} == before
    found = sidestep.load(place).exit_rule
    assert found == solved.rule and found.criterion == "entropy"
    shutil.rmtree(cache)
    found = sidestep.load(place).exit_rule
    assert found is not None and found.criterion == "confidence"


def test_a_package_says_nothing_of_the_disk_it_was_made_on(run: Path, package: Path) -> None:
    text = (package / "config.json").read_text() + (package / "README.md").read_text()
    assert str(run.parent) not in text
    config = read_config(package)
    assert config["sidestep"]["recipe"]["model"]["init"] is None


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("hfds//data/sets/cifar10", "hfds/./cifar10"),
        ("/data/photos", "./photos"),
        ("hfds/uoft-cs/cifar10", "hfds/uoft-cs/cifar10"),
        ("digits", "digits"),
    ],
)
def test_data_on_a_disk_is_known_by_its_name(source: str, kept: str) -> None:
    recipe = from_dict({**TINY, "data": {"source": source}}).as_dict()
    portable = portable_recipe(recipe)
    assert portable["data"]["source"] == kept
    assert from_dict(portable).data.source == kept


def test_the_configuration_has_timms_keys_and_one_object_of_ours(run: Path, package: Path) -> None:
    config = json.loads((package / "config.json").read_text())
    opened = sidestep.load(run)
    assert config["architecture"] == "cifar_resnet8" and config["num_classes"] == 10
    assert config["num_features"] == 64 and config["label_names"] == [str(digit) for digit in range(10)]
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    own = config["sidestep"]
    assert set(config) == {
        "architecture", "num_classes", "num_features", "global_pool", "label_names", "pretrained_cfg",
        "sidestep",
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())["best"]
    assert own["results"]["report"] == report
    assert own["cost_book"]["full"] == sidestep.measure_cost(opened, (16, 16)).full
    assert own["thresholds"]["criterion"] == "confidence" and len(own["budgets"]["exits"]["points"]) == 5
    environment = json.loads((run / "environment.json").read_text())
    assert own["commit"] == environment["commit"]


def test_the_card_has_a_model_index_and_a_table(run: Path, package: Path) -> None:
    card = ModelCard.load(package / "README.md")
    report = json.loads((run / "report.json").read_text())["best"]
    results = card.data.eval_results
    assert [(each.metric_type, each.dataset_type) for each in results] == [
        ("accuracy", "digits"), ("gflops", "digits")
    ]  # fmt: skip
    assert results[0].metric_value == pytest.approx(report["accuracy"], abs=1e-6)
    assert card.data.library_name == "sidestep" and "rdi_net" in card.data.tags
    assert f"| test | its decisions | {100 * report['accuracy']:.2f} % |" in card.text
    assert "| validation | thresholds of this package |" in card.text
    assert card.text.count("| test | a budget of ") == 3


def test_thresholds_that_are_infinite_are_those_of_plans(run: Path, tmp_path: Path) -> None:
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=1.0))
    sidestep.push(run, f"local-dir:{tmp_path / 'new'}")
    json.loads((tmp_path / "new" / "config.json").read_text(), parse_constant=pytest.fail)
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.9))


def configured(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Return what changes the configuration of a package."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was executed')",)


def with_header(size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{" * 64)


def enlarged(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(65 * 2**20)


def torn(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def resaved(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "must be an existing file"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "there is none"),
    "torn weights": (torn("model.safetensors"), "damaged or not safetensors"),
    "torn configuration": (torn("config.json"), "is damaged"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb())),
        "damaged or not safetensors",
    ),
    "huge header": (with_header(2**62), "damaged or not safetensors"),
    "large header": (with_header(2**26), "damaged or not safetensors"),
    "deep configuration": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is damaged"),
    "large configuration": (enlarged, "at most 64 MiB"),
    "binary configuration": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "damaged"),
    "of timm": (configured(lambda config: config.pop("sidestep")), "has none; for weights of timm"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "must have an object 'sidestep'"),
    "newer": (configured(lambda config: config["sidestep"].update(format=2)), "format 1, got 2"),
    "absolute path": (
        configured(lambda config: config["sidestep"]["recipe"]["model"].update(init="/etc/passwd")),
        "must name no files, which a package does not hold, got init '/etc/passwd'",
    ),
    "path of a member": (
        configured(lambda config: config["sidestep"]["recipe"].update(members=[{"weights": "../../x"}])),
        "got weights '../../x'",
    ),
    "no classes": (configured(lambda config: config.update(label_names=[])), "names of the classes"),
    "classes of numbers": (configured(lambda config: config.update(label_names=[1])), "names of the classes"),
    "no size": (configured(lambda config: config["sidestep"].update(input_size=[-1, 8])), "height and width"),
    "no recipe": (configured(lambda config: config["sidestep"].update(recipe=3)), "must have a recipe"),
    "thresholds of text": (
        configured(lambda config: config["sidestep"].update(thresholds="x")), "thresholds and ranges of bytes"
    ),
    "thresholds of no criterion": (
        configured(lambda config: config["sidestep"]["thresholds"].update(criterion="x")), "a run has had"
    ),
    "curve of text": (
        configured(lambda config: config["sidestep"]["budgets"].update(exits="x")), "or null, in budgets"
    ),
    "minutes of text": (
        configured(lambda config: config["sidestep"]["results"].update(minutes="x")), "asked and minutes"
    ),
    "preparation of nothing": (
        configured(lambda config: config["sidestep"].update(preparation={})), "a run has had"
    ),
    "unknown method": (
        configured(lambda config: config["sidestep"]["recipe"]["method"].update(name="absent")),
        "method.name must be one of",
    ),
    "one class more": (configured(lambda config: config["label_names"].append("x")), "does not fit"),
    "no tensors": (resaved(lambda tensors: tensors.clear()), "must hold weights"),
    "one tensor less": (resaved(lambda tensors: tensors.popitem()), "it lacks"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_damaged_foreign_or_malicious_is_refused_in_a_sentence(
    case: str, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, sentence = WRONG[case]
    change(changed)
    with pytest.raises(SidestepError, match=re.escape(sentence)):
        sidestep.load(f"local-dir:{changed}")
    assert main(["evaluate", f"local-dir:{changed}"]) == 2
    assert capsys.readouterr().err.startswith("sidestep: ")


def test_other_checkpoints_and_names_are_told_what_to_do(package: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has best\.safetensors alone, as packages do"):
        sidestep.load(f"local-dir:{package}", checkpoint="last")
    with pytest.raises(CheckpointError, match="is a package; name it local-dir:"):
        sidestep.load(package)
    with pytest.raises(CheckpointError, match="must be followed by a folder"):
        sidestep.load("local-dir:")
    assert read_package(package).tensors.keys() == sidestep.load(f"local-dir:{package}").state_dict().keys()
