"""Triton's model repository: its configurations are Triton's, and its model follows the manifest."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.plan.levels import Level
from sidestep.targets.segment_folder import write_segments
from sidestep.targets.triton_repository import write_triton
from tests import strategies
from tests.plan.networks import network_of
from tests.plan.test_network import RDI_NET, SMALL
from tests.targets import fake_triton
from tests.targets.segment_folders import exportable_of, runner
from tests.targets.test_segments import COUNT, name_all_classes, rule_for


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the Python model of a repository, as Triton loads it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton)
    monkeypatch.delitem(sys.modules, "sidestep_segments", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(fake_triton, "REPOSITORY", folder.parent)
    monkeypatch.setattr(fake_triton, "CALLED", [])
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_name": folder.name})
    monkeypatch.delitem(sys.modules, "sidestep_segments")
    return model


def test_tritons_model_says_what_the_runner_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SMALL | {"exits": {"at": ["layer1", "layer2"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    name_all_classes(network, images)
    rule, full = rule_for(network, images, "confidence"), exportable_of(network, images).cost.full
    levels = [
        Level(macs=share * full, accuracy=share, exit_rates=[0.4, 0.3, 0.3], thresholds=thresholds)
        for share, thresholds in ((0.3, [-1.0, 2.0]), (0.9, [math.inf, math.inf]))
    ]
    export = replace(exportable_of(network, images, rule), levels=levels, about={"recipe": "a/tiny one"})
    write_segments(export, tmp_path / "flat")
    said = write_triton(export, tmp_path / "models")
    assert "model 'a_tiny_one' calls the others" in said
    configs = {path.parent.name: fake_triton.read_config(path) for path in tmp_path.glob("models/*/*.pbtxt")}
    assert all(config.name == name for name, config in configs.items())
    graphs = json.loads((tmp_path / "flat" / "manifest.json").read_text())["components"]
    assert set(configs) == {"a_tiny_one", *(f"a_tiny_one_{graph}" for graph in graphs)}
    top, run = configs["a_tiny_one"], runner(tmp_path / "flat")
    assert top.backend == "python" and top.max_batch_size == 128 and top.HasField("dynamic_batching")
    assert (tmp_path / "models" / "a_tiny_one" / top.output[0].label_filename).read_text() == "".join(
        f"{name}\n" for name in export.class_names
    )

    tritons = loaded(tmp_path / "models" / "a_tiny_one", monkeypatch)
    pictures = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, images.shape[1]), dtype=np.uint8)
    asked = [
        fake_triton.Asked(pictures[:5]),
        fake_triton.Asked(pictures[5:6], budget=0.3),
        fake_triton.Asked(pictures[6:9], budget=0.1),
        fake_triton.Asked(pictures[6:9, :, :3]),
        fake_triton.Asked(pictures[6:], budget=1),
    ]
    responses = tritons.execute(asked)
    told = [response.error() and response.error().message() for response in responses]
    assert told[0] is told[1] is told[4] is None
    assert "0.300 is the least here" in told[2] and "must be 16 x 16" in told[3]
    for request, budget, response in zip(asked, (None, 0.3, 0, 0, 1), responses, strict=True):
        if response.has_error():
            continue
        wanted = run(np.stack([run.pixels(picture) for picture in request.image]), budget=budget)
        outputs = response.outputs
        assert all(fake_triton.fits(each, outputs[each.name], batched=True) for each in top.output)
        np.testing.assert_allclose(outputs["probabilities"], wanted.probabilities, atol=1e-5)
        assert np.array_equal(outputs["class"][:, 0], wanted.probabilities.argmax(axis=1))
        assert np.array_equal(outputs["exit"][:, 0], wanted.exits)
        assert np.array_equal(outputs["path"], wanted.options)
        np.testing.assert_allclose(outputs["macs"][:, 0], wanted.macs)
    # Whoever leaves at the first exit asks for no graph behind it.
    fake_triton.CALLED.clear()
    (response,) = tritons.execute([fake_triton.Asked(pictures[:2], budget=0.3)])
    called = {name.removeprefix("a_tiny_one_") for name in fake_triton.CALLED}
    assert response.outputs["exit"].tolist() == [[0], [0]] and 0 < len(called) < len(graphs) / 2


def test_a_graph_that_fails_is_told_to_all_whose_images_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = network_of({"name": "static"}, SMALL), torch.zeros(COUNT, 3, 16, 16)
    write_triton(exportable_of(network, images), tmp_path / "models")
    model = loaded(tmp_path / "models" / "tiny", monkeypatch)
    model.name = "other"
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    responses = model.execute([fake_triton.Asked(picture), fake_triton.Asked(picture, budget=True)])
    assert [response.error().message() for response in responses] == [
        "no model other_segment_0",
        "budget must be a number, got True",
    ]
