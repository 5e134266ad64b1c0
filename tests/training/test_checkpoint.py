"""Checkpoints: whole or not at all, and matched to the network."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sidestep.backbones.static_weights import load_static_weights, load_weights
from sidestep.errors import CheckpointError
from sidestep.networks.models import ModelConfig, build_backbone
from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.doubles import model_config
from tests.paths import SHARED

WEIGHTS = SHARED / "weights"


def example() -> Checkpoint:
    return Checkpoint(tensors={"model.w": torch.arange(6.0).view(2, 3)}, values={"step": 7})


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.safetensors", example())
    loaded = load_checkpoint(tmp_path / "last.safetensors")
    assert torch.equal(loaded.section("model")["w"], torch.arange(6.0).view(2, 3))
    assert loaded.values["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_weights_that_several_routers_share_are_saved_under_every_name(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(tensors={"a": shared, "b": shared}, values={}))
    tensors = load_checkpoint(tmp_path / "a.safetensors").tensors
    assert torch.equal(tensors["a"], shared) and torch.equal(tensors["b"], shared)


@pytest.mark.parametrize("keep", [0, 4, 40, -3])
def test_a_truncated_checkpoint_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, example())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        load_checkpoint(path)


def test_static_weights_are_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "static.safetensors")
    with pytest.raises(CheckpointError, match=r"was not written by sidestep.*model\.init"):
        load_checkpoint(tmp_path / "static.safetensors")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors must be an existing file"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, example())
    script = f"""
import resource, signal, sys, torch
from pathlib import Path
from sidestep.training.checkpoint import Checkpoint, save_checkpoint
from sidestep.errors import CheckpointError
from tests.paths import SHARED
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(Path({str(path)!r}), Checkpoint(tensors={{"w": torch.zeros(100_000)}}, values={{}}))
except CheckpointError as error:
    print(error)
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "could not be written" in done.stdout
    assert load_checkpoint(path).values["step"] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks bias"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
            "has more, which the",
        ),
        (
            {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
            r"has weight as \(2, 4\), the network as \(2, 3\)",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        load_weights(layer, tensors, "weights")
    assert torch.equal(layer.weight, before)


def test_torch_files_with_wrappers_load(tmp_path: Path) -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet8"), 10)
    state = {"module." + key.replace("fc.", "linear."): value for key, value in backbone.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 1.0}, tmp_path / "w.th")
    other = build_backbone(ModelConfig(name="cifar_resnet8"), 10)
    load_static_weights(other, tmp_path / "w.th")
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_weights_of_torchvision_load(tmp_path: Path, file: str) -> None:
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    if file.endswith("pth"):
        torch.save(theirs.state_dict(), tmp_path / file)
    else:
        save_file(theirs.state_dict(), tmp_path / file)
    mine = build_backbone(ModelConfig(name="resnet18"), 10).eval()
    load_static_weights(mine, tmp_path / file)
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(mine(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "se_ratio"), [("resnet50", None), ("seresnet50", 16)])
def test_weights_of_timm_load_with_the_1x1_convolutions_of_its_squeeze_and_excitation(
    tmp_path: Path, name: str, se_ratio: int | None
) -> None:
    theirs = timm.create_model(name, num_classes=10, zero_init_last=False).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth")
    mine = build_backbone(model_config("resnet50", se_ratio=se_ratio), 10).eval()
    load_static_weights(mine, tmp_path / "w.pth")
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(mine(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_a_convolution_that_is_no_linear_layer_does_not_fit_one(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3, 3, 3), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"has weight as \(2, 3, 3, 3\), the network as \(2, 3\)"):
        load_static_weights(nn.Linear(3, 2), tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["", "network.", "model.backbone.network."])
def test_weights_of_a_wrapped_network_load_under_its_own_names(prefix: str, tmp_path: Path) -> None:
    config = ModelConfig(name="timm/test_convnext")
    network = build_backbone(config, 10).origin
    state = {prefix + key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    other = build_backbone(config, 10)
    load_static_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"does not fit ConvNeXt: it has head\.fc\.bias as \(10,\)"):
        load_static_weights(build_backbone(config, 7), tmp_path / "w.safetensors")


def test_a_torch_file_that_is_garbage_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged or hold more than tensors"):
        load_static_weights(nn.Linear(1, 1), tmp_path / "w.pth")


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the static weights are not beside this checkout")
@pytest.mark.parametrize("depth", [20, 32, 56])
def test_published_static_weights_fit_their_backbone(depth: int) -> None:
    backbone = build_backbone(ModelConfig(name=f"cifar_resnet{depth}"), 10)
    load_static_weights(backbone, WEIGHTS / f"resnet{depth}-cifar10.safetensors")
    with pytest.raises(CheckpointError, match="does not fit CifarResNet"):
        load_static_weights(
            build_backbone(ModelConfig(name="cifar_resnet44"), 10),
            WEIGHTS / f"resnet{depth}-cifar10.safetensors",
        )


def test_a_run_whose_network_is_built_otherwise_today_gets_no_advice_about_other_networks() -> None:
    backbone = build_backbone(ModelConfig(name="cifar_resnet8"), 10)
    for network in (backbone, nn.Linear(2, 2)):
        with pytest.raises(CheckpointError, match="load it with the code that it was trained with") as caught:
            load_weights(
                network, {"exits.0.fc.weight": torch.zeros(2)}, "checkpoint runs/ranet/best.safetensors"
            )
        assert "shortcut" not in str(caught.value) and "se_ratio" not in str(caught.value)
