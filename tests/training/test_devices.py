"""Which processes a run gets, and the sentences for those it cannot have."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric.strategies import DDPStrategy

from sidestep.cli.main import main
from sidestep.errors import RecipeError
from sidestep.training.devices import Devices

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "method": {"name": "static"},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 100},
    "training": {"phases": [{"name": "joint", "epochs": 1}], "batch_size": 31},
}
# Starts a process that would wait for long, and dies as soon as that one watches.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
os.kill(os.getpid(), 9)
"""
CHILD = """
import time
from sidestep.training.devices import _end_with_parent
_end_with_parent()
print("watching", flush=True)
time.sleep(3600)
"""


def torchrun(patch: pytest.MonkeyPatch, *, total: int, per_node: int) -> None:
    """Set what torchrun tells the first of its processes."""
    numbers = {"WORLD_SIZE": total, "LOCAL_WORLD_SIZE": per_node, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0}
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **numbers}.items():
        patch.setenv(name, str(value))


def slurm(patch: pytest.MonkeyPatch, **numbers: int) -> None:
    """Set what srun tells the first of its processes."""
    for name in ("PROCID", "LOCALID", "NODEID"):
        patch.setenv(f"SLURM_{name}", "0")
    patch.setenv("SLURM_JOB_NAME", "job")
    for name, value in numbers.items():
        patch.setenv(f"SLURM_{name.upper()}", str(value))


def refused(arguments: list[str], folder: Path) -> int:
    """Return the exit code of a training that must not write anything."""
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    code = main(["train", str(recipe), "--out", str(folder / "run"), *arguments])
    assert not (folder / "run").exists()
    return code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accelerator", "gpuu"], "accelerator must be one of auto, cpu, cuda, got 'gpuu'"),
        (["--strategy", "foo"], "strategy must be one of auto, ddp, got 'foo'"),
        (["--devices", "0"], "devices must be at least 1, got 0; leave it out for one"),
        (["--num-nodes", "-1"], "num-nodes must be at least 1, got -1; leave it out for one"),
        (
            ["--num-nodes", "2"],
            "num-nodes must be 1 without a launcher on every node, got 2; start with",
        ),
        (
            ["--accelerator", "cuda"],
            "accelerator cuda needs a GPU, and torch finds none; set it to",
        ),
    ],
)
def test_wrong_devices_are_one_sentence_exit_code_two_and_no_folder(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(arguments, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sidestep: {message}")
    assert error.count("\n") == 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match=r"devices must be at most the node's 2 GPUs, got 3; .* to cpu"):
        Devices(devices=3).fabric()
    assert Devices(devices=3, accelerator="cpu").fabric().world_size == 3


def test_one_process_is_the_default() -> None:
    fabric = Devices(accelerator="cpu").fabric()
    assert fabric.world_size == 1
    assert not isinstance(fabric.strategy, DDPStrategy)


def test_torchrun_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, total=6, per_node=3)
    for devices in (Devices(accelerator="cpu"), Devices(accelerator="cpu", devices=3, num_nodes=2)):
        fabric = devices.fabric()
        assert isinstance(fabric.strategy, DDPStrategy)
        assert (fabric.strategy.num_processes, fabric.strategy.num_nodes, fabric.world_size) == (3, 2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "3"], "devices must be 2, which torchrun has started, got 3; leave it out"),
        (["--num-nodes", "2"], "num-nodes must be 1, which torchrun has started, got 2; leave it out"),
    ],
)
def test_torchrun_and_the_flags_must_not_contradict(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchrun(monkeypatch, total=2, per_node=2)
    assert refused(["--accelerator", "cpu", *arguments], tmp_path) == 2
    assert capsys.readouterr().err == f"sidestep: {message}\n"


def test_nodes_with_different_numbers_of_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, total=5, per_node=3)
    with pytest.raises(RecipeError, match="same number of processes on every node, got 3 of 5 here"):
        Devices(accelerator="cpu").fabric()


def test_only_the_first_process_says_what_all_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, total=2, per_node=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert refused(["--accelerator", "cpu", "--devices", "3"], tmp_path) == 2
    assert capsys.readouterr().err == ""


def test_a_sweep_under_torchrun_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, total=2, per_node=2)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert main(["sweep", str(recipe), "--over", "seed=0,1", "--out", str(tmp_path / "sweep")]) == 2
    assert "a sweep must be started without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_tasks_of_slurm_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, ntasks=4, ntasks_per_node=2, nnodes=2)
    fabric = Devices(accelerator="cpu", devices=2, num_nodes=2).fabric()
    assert (fabric.world_size, fabric.global_rank) == (4, 0)
    with pytest.raises(RecipeError, match="be SLURM's 2 tasks per node and 2 nodes, got 4 and 1; let"):
        Devices(accelerator="cpu", devices=4).fabric()


def test_slurm_has_to_say_where_its_tasks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, ntasks=4)
    with pytest.raises(RecipeError, match="SLURM must know --ntasks-per-node, got --ntasks=4 alone"):
        Devices(accelerator="cpu").fabric()


def test_a_process_ends_with_the_one_that_started_it() -> None:
    # Both hold the standard error open, for whose end the call waits.
    done = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD], stderr=subprocess.PIPE, timeout=600, check=False
    )
    assert done.returncode == -9
    assert done.stderr == b""


def test_the_environment_is_left_as_it_was() -> None:
    before = dict(os.environ)
    with Devices(accelerator="cpu").launched() as fabric:
        assert fabric.is_global_zero
    assert dict(os.environ) == before
