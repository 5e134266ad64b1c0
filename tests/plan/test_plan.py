"""Plans as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from sidestep.errors import ExportError
from sidestep.plan.format import Plan, save_plan
from sidestep.plan.weights import Weights
from tests.doubles import shared_network
from tests.plan.networks import plan_of
from tests.reference.plan import read_plan


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    plan, path = plan_of(shared_network(depth=8)), tmp_path / "tiny.plan"
    assert save_plan(path, plan) == path.stat().st_size
    document, tensors = read_plan(path)
    assert document == plan.document
    assert tensors.keys() == plan.tensors.keys()
    assert all(torch.equal(tensor, plan.tensors[name]) for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"sidestep_plan"}
    assert os.listdir(tmp_path) == ["tiny.plan"]


def test_a_plan_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.plan"
    path.write_text("the old one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"tiny.plan could not be written \(No space left on device\)"):
        save_plan(path, Plan(document={"steps": []}, tensors={"w": torch.zeros(2)}))
    assert path.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["tiny.plan"]


def test_a_folder_that_cannot_be_made_is_named_and_others_are_made(tmp_path: Path) -> None:
    plan = Plan(document={"steps": []}, tensors={})
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/tiny.plan could not be written"):
        save_plan(tmp_path / "file" / "tiny.plan", plan)
    assert save_plan(tmp_path / "new" / "tiny.plan", plan) > 0


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_documents_are_json_that_every_reader_takes(number: float) -> None:
    document: dict[str, Any] = {"steps": [], "about": number}
    with pytest.raises(ValueError):
        Plan(document=document, tensors={}).as_bytes()


def test_weights_are_known_by_name_and_stored_once() -> None:
    layer = nn.Linear(3, 2)
    weights = Weights(layer)
    assert weights.knows(layer.weight) and not weights.knows(layer.weight.t())
    assert weights.store(layer.weight) == weights.store(layer.weight.detach()) == "weight"
    assert weights.store(layer.weight.t().t()) == "weight"
    assert weights.store(layer.weight.t()) == weights.store(layer.weight.t().clone()) == "constant.1"
    assert weights.store(torch.ones(2), "mine") == weights.store(torch.ones(2), "mine") == "mine"
    assert weights.store(torch.zeros(2), "mine") == "mine.3"
    assert list(weights.tensors) == ["weight", "constant.1", "mine", "mine.3"]
    assert weights.tensors["constant.1"].is_contiguous()
