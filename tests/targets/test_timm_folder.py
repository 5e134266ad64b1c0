"""Static networks leave for timm with their weights, pixels and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import sidestep
from sidestep.cli.main import main
from sidestep.errors import ExportError
from sidestep.runs.recipe import from_dict


def trained(folder: Path, model: str, method: str = "static", *, epochs: int = 1, **settings: Any) -> Path:
    """Return a run after a step, or with the weights it starts from where it has no epochs."""
    values = {
        "name": "tiny",
        "method": {"name": method},
        "model": {"name": model, **settings},
        "data": {"source": "digits", "image_size": 32, "limit": 64, "mean": [0.1, 0.2, 0.3]},
        "training": {"phases": [{"name": "all", "epochs": 1, "lr": 0.01}][:epochs], "batch_size": 32}
        | {"max_steps": 1},
    }
    return sidestep.train(from_dict(values), folder)


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        pytest.param("timm/vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("preact_resnet50", marks=pytest.mark.slow),
    ],
)
def test_timm_says_what_the_run_says(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = trained(tmp_path / "run", model), tmp_path / "folder"
    assert main(["export", str(run), "--to", "timm", "--out", str(folder)]) == 0
    assert f"timm.create_model('local-dir:{folder}', pretrained=True)" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), sidestep.load(run)(images).logits, rtol=1e-4, atol=1e-4)
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (3, 32, 32) and tuple(data["mean"]) == (0.1, 0.2, 0.3)
    assert theirs.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("model", "method", "settings", "sentence"),
    [
        ("cifar_resnet8", "static", {}, "timm must have the network, and has no cifar_resnet8"),
        ("resnet18", "rdi_net", {}, "timm runs static networks alone"),
        ("resnet18", "static", {"se_ratio": 16}, "its resnet18 differs: ours has layer1.0.se"),
    ],
)
def test_what_timm_does_not_have_is_refused(
    model: str, method: str, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", model, method, epochs=0, **settings)
    with pytest.raises(ExportError, match=sentence):
        sidestep.export_run(run, tmp_path / "folder", to="timm")
    assert not (tmp_path / "folder").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "resnet18", epochs=0)
    with pytest.raises(ExportError, match="must be a new or empty folder"):
        sidestep.export_run(run, run, to="timm")
