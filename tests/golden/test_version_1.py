"""Runs, plans and recipes that were written before recipes had a version are still understood.

The files in `version_1` were written by commit cc8821c67c3e: a tiny RDI-Net with two attached exits and a
calibrated rule as checkpoint and plan (most weights are 0, so that they compress well), what that commit said
about eight images, and the resolved recipes of networks of every kind with what these networks consisted of.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sidestep
from sidestep.execution.execution import EXECUTIONS
from sidestep.runs.assemble import untrained
from sidestep.runs.recipe import from_dict
from tests.reference.plan import read_plan, run_plan

FILES = Path(__file__).parent / "version_1"
SAID: dict[str, Any] = json.loads((FILES / "said.json").read_text())
RECIPES: dict[str, dict[str, Any]] = json.loads((FILES / "recipes.json").read_text())
# What the recipes have in common, said once.
COMMON = RECIPES.pop("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoint and plan."""
    folder = tmp_path_factory.mktemp("version_1")
    for name in ("best.safetensors", "best.plan"):
        (folder / name).write_bytes(lzma.decompress((FILES / f"{name}.xz").read_bytes()))
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    pixels = np.random.RandomState(0).uniform(-2, 2, (64, 3, 4, 4))[:8]
    return torch.from_numpy(np.kron(pixels, np.ones((1, 1, 4, 4))).astype(np.float32))


def assert_said(key: str, found: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.tensor(SAID[key]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["masked", "gathered", "cascade"])
def test_a_checkpoint_says_what_it_said(way: str, run: Path, images: Tensor) -> None:
    network = sidestep.load(run)
    rule = sidestep.ExitRule(thresholds=SAID["thresholds"], temperatures=[1.0] * 3)
    with torch.no_grad():
        output = network(images, execution=EXECUTIONS[way], rule=rule)
    assert_said("logits", output.logits)
    assert output.decisions.execution().int().tolist() == SAID["executed"]
    assert output.decisions.exits.argmax(dim=1).tolist() == SAID["exits"]
    assert sidestep.measure_cost(network, (16, 16)).full == SAID["full_macs"]
    if way == "masked":
        assert_said("exit_logits", output.exit_logits)


def test_a_plan_says_what_it_said(run: Path, images: Tensor) -> None:
    document, tensors = read_plan(run / "best.plan")
    found = [run_plan(document, tensors, image) for image in images]
    assert_said("logits", torch.stack([logits for logits, _, _ in found]))
    for (_, decisions, leaves), executed, at in zip(found, SAID["executed"], SAID["exits"], strict=True):
        assert decisions == executed[: len(decisions)]
        assert leaves == at or (leaves is None and at == 2)


@pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None,
    reason="SIDESTEP-ENGINE MISSING: pip install ./engine",
)
def test_the_engine_runs_the_plan(run: Path, images: Tensor) -> None:
    import sidestep_engine

    plan = sidestep_engine.parse_plan((run / "best.plan").read_bytes())
    output = sidestep_engine.Engine(plan, precision="float32", num_threads=1)(images.numpy())
    assert_said("logits", output.logits)
    assert output.exits.tolist() == SAID["exits"]
    assert np.maximum(output.options, 0).tolist() == SAID["executed"]


def test_a_plan_written_today_has_the_calibrated_exits_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    sidestep.export_run(run, tmp_path / "new.plan")
    new, old = read_plan(tmp_path / "new.plan")[0], read_plan(run / "best.plan")[0]
    exits = [[step["exit"] for step in document["steps"] if "exit" in step] for document in (new, old)]
    assert len(exits[0]) == 2
    assert [step["threshold"] for step in exits[0]] == [step["threshold"] for step in exits[1]]


def merged(common: Any, own: Any) -> Any:
    """Return the mapping of both, in which `own` has the last word."""
    if not (isinstance(common, dict) and isinstance(own, dict)):
        return own
    return common | {key: merged(common.get(key), value) for key, value in own.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_the_network_that_it_built(name: str) -> None:
    kept = RECIPES[name]
    size = tuple(kept["input_size"])
    recipe = from_dict(merged(COMMON, kept["recipe"]))
    network = untrained(recipe, num_classes=10, input_size=size)
    state = network.state_dict()
    assert len(state) == kept["num_tensors"]
    assert sum(tensor.numel() for tensor in state.values()) == kept["num_values"]
    listed = "\n".join(f"{key} {list(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == kept["names"], listed
    assert sidestep.measure_cost(network, size).full == kept["full_macs"]
