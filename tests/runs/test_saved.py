"""Networks trained in a loop of one's own: wrapped, saved, opened again, exported, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import sidestep
from sidestep.cli.main import main
from sidestep.errors import CheckpointError, RecipeError
from tests import strategies

PLAIN: dict[str, Any] = {"image_size": (32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}


def trained(model: nn.Module, **settings: Any) -> sidestep.RoutedNetwork:
    """Return the network after a step in a loop of one's own."""
    network = sidestep.wrap(model.train(), router={"dim": 8}, **settings)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    output = network(strategies.images(8, 0, size=32))
    nn.functional.cross_entropy(output.logits, torch.arange(8) % 5).backward()
    optimizer.step()
    return network.eval()


def resnet(**settings: Any) -> nn.Module:
    made: nn.Module = torchvision.models.resnet18(num_classes=5, **settings)
    return made


@pytest.mark.parametrize("units", ["blocks", ["layer1.0", "layer3.0"]])
def test_a_network_of_timm_is_opened_by_its_name(units: Any, tmp_path: Path) -> None:
    network = trained(timm.create_model("resnet10t", num_classes=5), units=units)
    sidestep.save(network, tmp_path / "a.safetensors", image_size=(32, 32))
    opened, images = sidestep.load(tmp_path / "a.safetensors"), strategies.images(4, 1, size=32)
    expected, actual = network(images), opened(images)
    assert not opened.training
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.decisions.weights, expected.decisions.weights)


def test_any_other_network_is_opened_with_what_it_was_wrapped_around(tmp_path: Path) -> None:
    network, path = trained(resnet(), units=["layer2.0", "layer2.1"]), tmp_path / "a.safetensors"
    sidestep.save(network, path, **PLAIN)
    images = strategies.images(4, 1, size=32)
    opened = sidestep.load(path, model=resnet())
    torch.testing.assert_close(opened(images).logits, network(images).logits)
    with pytest.raises(CheckpointError, match="holds a ResNet, which is no network of timm; pass the static"):
        sidestep.load(path)
    leaky = resnet()
    leaky.relu = nn.LeakyReLU(0.3)
    with pytest.raises(CheckpointError, match="this ResNet computes something else with the same weig"):
        sidestep.load(path, model=leaky)
    with pytest.raises(CheckpointError, match=r"does not fit RoutedNetwork: it has .*fc\.bias as"):
        sidestep.load(path, model=torchvision.models.resnet18(num_classes=4))


def test_a_saved_network_is_exported_as_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, path = trained(timm.create_model("resnet10t", num_classes=5)), tmp_path / "a.safetensors"
    names = ["a", "b", "c", "d", "e"]
    sidestep.save(network, path, image_size=(32, 32), class_names=names)
    written = sidestep.export_run(path)
    assert written.path == tmp_path / "a.plan"
    assert "4 units that images can skip" in written.summary
    assert main(["export", str(path), "--out", str(tmp_path / "b.plan")]) == 0
    assert (tmp_path / "b.plan").read_bytes() == (tmp_path / "a.plan").read_bytes()
    assert "wrote" in capsys.readouterr().out
    sidestep.save(trained(resnet()), path, **PLAIN)
    assert "8 units" in sidestep.export_run(path, tmp_path / "c.plan", model=resnet()).summary
    with pytest.raises(RecipeError, match="budget, segments and source must go with a run folder, got the"):
        sidestep.export_run(path, budget=0.5, model=resnet())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "a.pth"}, r"path must end in \.safetensors, got .*a\.pth; rename it"),
        ({"class_names": ["a"]}, "class_names must be one for each of 5 logits, got 1; name them all"),
        ({"mean": None}, "mean must have one number for each of 3 channels, got nothing; say what training"),
        ({"std": (1.0,)}, "std must have one number for each of 3 channels, got 1; say what training"),
        ({"std": (0.2, 0.2, 0.0)}, "finite numbers, std above 0, one of each for every channel"),
        ({"mean": (float("nan"),) * 3}, "mean and std must be finite numbers"),
        ({"network": resnet()}, "network must be one that wrap has made, got a ResNet that it has not; wrap"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    network = values.pop("network", None) or sidestep.wrap(resnet())
    path = tmp_path / values.pop("path", "a.safetensors")
    with pytest.raises(RecipeError, match=message):
        sidestep.save(network, path, **(PLAIN | values))
    assert not path.exists()


def test_other_files_and_run_folders_are_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    torch.save({}, other)
    with pytest.raises(
        CheckpointError, match=r"must be a run folder, got a file that sidestep\.save has not"
    ):
        sidestep.load(other)
    with pytest.raises(RecipeError, match="model must go with a file that save has written, got run"):
        sidestep.load(tmp_path, model=resnet())
