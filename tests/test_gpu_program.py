"""The program for minutes of a GPU, on a CPU: its state, its rows, and a call that goes on with another."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sidestep.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sidestep.training.devices import Devices

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
sys.path.insert(0, str(HERE))
rows_module, state_module = __import__("rows"), __import__("state")
sys.path.pop(0)

SMALL = ["data.image_size=16", "data.crop_padding=1", "data.flip=false", "training.max_steps=2"]


def test_every_row_is_a_recipe() -> None:
    rows = rows_module.read_rows(HERE / "rows.yaml", {"cifar10": "digits", "cifar100": "digits"}, [])
    names = [row.name for row in rows]
    assert len(names) == len(set(names)) > 50
    assert rows_module.read_rows(HERE / "rows.yaml", {"cifar100": "digits"})[0].name.startswith("cifar100")


def test_more_rows_than_a_pipe_holds_are_handed_out(tmp_path: Path) -> None:
    rows = rows_module.read_rows(HERE / "rows.yaml", {"cifar10": "digits"})
    assert sum(len(pickle.dumps(row)) for row in rows) > 1 << 16
    devices = Devices(accelerator="cpu", logger="none", compile=False)
    rows_module.train_rows(
        rows, tmp_path, workers=1, replicas=1, seconds=0.0, devices=devices, keep=lambda: None
    )


def test_a_state_is_small_pieces_of_what_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "PIECE", 40_000)
    monkeypatch.setattr(state_module, "MOST", 120_000)
    work, state = tmp_path / "work", tmp_path / "state"
    weights = Checkpoint(
        tensors={
            "model.a": torch.arange(5000.0),
            "raw.a": torch.zeros(5000),
            "optimizer.0.m": torch.ones(5000),
        },
        values={"position": {}},
    )
    for name in ("open", "done", "more"):
        (work / "runs" / name).mkdir(parents=True)
        for file in ("best.safetensors", "last.safetensors"):
            save_checkpoint(work / "runs" / name / file, weights)
    for name in ("report.json", "images.safetensors"):
        (work / "runs" / "done" / name).write_text("{}")
    (work / "done.json").write_text("{}")
    left = state_module.pack(work, state)
    # Of two open runs, with two files of 60 kB each, one goes on; the finished one has a light file.
    assert sorted(path.name for path in left) == ["best.safetensors", "best.safetensors", "last.safetensors"]
    assert all(path.stat().st_size <= 40_000 for path in state.iterdir())
    state_module.unpack(state, tmp_path / "next")
    assert (tmp_path / "next" / "done.json").read_text() == "{}"
    found = load_checkpoint(tmp_path / "next" / "runs" / "done" / "best.safetensors")
    assert found.tensors.keys() == {"model.a"}
    assert torch.equal(found.tensors["model.a"], weights.tensors["model.a"])
    kept = {path.name for path in (tmp_path / "next" / "runs" / "done").iterdir()}
    assert kept == {"best.safetensors", "report.json"}


@pytest.mark.exhaustive
def test_a_call_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    rows = [
        {"name": "static", "recipe": "static_resnet20_cifar10_fast", "data": "digits", "seeds": [0, 1]},
        {"name": "share", "recipe": "share_resnet20_cifar10_fast", "data": "digits"},
    ]
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump([row | {"settings": SMALL} for row in rows]))
    command = [sys.executable, str(HERE / "program.py"), "--state", str(tmp_path / "state")]
    command += ["--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.yaml"), "--parts", "rows"]
    command += ["--data", "digits=digits", "--accelerator", "cpu", "--workers", "1", "--replicas", "2"]
    for minutes in ("0.01", "4"):
        subprocess.run([*command, "--minutes", minutes], check=True, timeout=400)
    table = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [line["row"] for line in table] == ["static_seed0", "static_seed1", "share_seed0"]
    assert all(0 <= line["accuracy"] <= 1 for line in table)
    calls = json.loads((tmp_path / "out" / "done.json").read_text())["calls"]
    assert len(calls) == 2 and calls[0]["minutes"] < calls[1]["minutes"]
