"""Surveys from texts and data: pages, the networks that they take, and those that they refuse."""

import json
from pathlib import Path

import pytest
import torch

from sidestep.backbones.static_weights import load_static_weights
from sidestep.cli.main import main
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.results.survey_page import save_survey
from sidestep.runs.latency import Way
from sidestep.runs.recipe import from_dict
from sidestep.runs.survey import survey
from sidestep.runs.train import train
from tests.hasty import hasten
from tests.training.test_methods_train import tiny

DIGITS = {"source": "digits", "image_size": 16}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(name="cifar_resnet14"), num_classes=10)
    path = tmp_path / "resnet14.safetensors"
    save_file(backbone.state_dict(), path)
    load_static_weights(backbone, path)
    return path


def test_a_page_says_what_blocks_are_worth_and_how_to_begin(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page" / "survey.md"
    command = ["survey", f"cifar_resnet14={weights}", "--data.source=digits", "--data.image_size=16"]
    assert main([*command, "--out", str(out), "--images", "40", "--paths", "3"]) == 0
    said = capsys.readouterr()
    assert "layer1.0" in said.out and "on 40 images" in said.out
    page = out.read_text()
    assert "`--method.path=" in page and "`--method.share.shares=[" in page
    assert "## Pairs that need each other" in page
    data = json.loads(out.with_suffix(".json").read_text())
    assert len(data["survey"]["pairs"]) == 15 and data["survey"]["num_images"] == 40
    assert out.with_suffix(".png").stat().st_size > 10_000
    # What it proposes is a recipe.
    path = page.split("`--method.path=")[1].split("`")[0]
    recipe = {
        "name": "x",
        "method": {"name": "fixed_path", "path": path},
        "model": {"name": "cifar_resnet14"},
    }
    from_dict({**recipe, "data": DIGITS, "training": {"phases": [{"name": "joint", "epochs": 1}]}})


def test_units_of_a_run_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    folder = train(tiny("convnet_aig"), tmp_path / "run")
    # Its data are the run's own, where nothing else is said.
    found = survey(str(folder), data={}, images=20, pairs=False, way=Way(runtime="pytorch", seconds=0.01))
    assert found.source == "digits"
    assert found.ms is not None and len(found.ms) == len(found.survey.without) == 3
    assert found.timed == "pytorch, 1 images per call"
    assert "ms (pytorch, 1 images per call)" in save_survey(tmp_path / "s.md", found)[0].read_text()


def test_blocks_of_a_timm_network_have_its_names(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=10)
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    model = f"timm/mobilenetv3_small_050={tmp_path / 'small.safetensors'}"
    found = survey(model, data=DIGITS, images=8, pairs=False)
    names = found.survey.names
    assert "blocks.2.1" in names and set(names) <= {name for name, _ in network.named_modules()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "1"], "images must be at least 2, got 1"),
        (["--paths", "-1"], "paths must be at least 0, got -1"),
        (["--split", "val", "--data.val_fraction=0"], "must have a validation split where val_fraction is 0"),
        (["--out", "survey.txt"], "page must be a .md file, got survey.txt"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: list[str],
    message: str,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["survey", f"cifar_resnet14={weights}", "--data.source=digits", "--data.image_size=16"]
    assert main([*command, "--no-pairs", "--images", "10", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.md"))


def test_a_network_of_exits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tiny("msdnet"), tmp_path / "run")
    assert main(["survey", str(folder), "--data.source=digits", "--data.image_size=16"]) == 2
    assert "needs a network whose units can be left out, got" in capsys.readouterr().err
