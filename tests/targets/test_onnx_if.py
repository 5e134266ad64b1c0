"""Networks in one ONNX graph with If, against masked PyTorch, one image after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sidestep.networks.network import DynamicNetwork
from sidestep.routing.exit_rule import ExitRule
from sidestep.targets.onnx_if import write_onnx_if
from tests import strategies
from tests.doubles import shared_exit_network
from tests.plan.networks import network_of
from tests.plan.test_network import CASES, RDI_NET, SMALL
from tests.targets.segment_folders import exportable_of
from tests.targets.test_segments import rule_for

COUNT = 24


def say(path: Path, images: torch.Tensor, runtime: str) -> list[dict[str, Any]]:
    """Return the outputs by name for every image."""
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_outputs()]
        run = [session.run(names, {"images": image[None].numpy()}) for image in images]
        return [dict(zip(names, said, strict=True)) for said in run]
    import openvino

    request = (
        openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    )
    found = []
    for image in images:
        said = request.infer({"images": image[None].numpy()})
        found.append({port.get_any_name(): value.copy() for port, value in said.items()})
    return found


def assert_same(
    path: Path, network: DynamicNetwork, images: torch.Tensor, rule: ExitRule | None, runtime: str
) -> set[int]:
    """Assert that the file says what the network does masked; return the exits that images took."""
    with torch.no_grad():
        output = network(images, rule=rule)
    paths, exits = output.decisions.paths(), output.decisions.exits
    for row, said in enumerate(say(path, images, runtime)):
        np.testing.assert_allclose(said["logits"][0], output.logits[row].numpy(), atol=1e-4)
        options = said.get("options", np.zeros(0, np.int64))
        asked = options >= 0
        assert np.array_equal(options[asked], paths[row].numpy()[: len(options)][asked])
        assert asked.tolist() == sorted(asked.tolist(), reverse=True)
        if exits is not None:
            assert said["exit"].tolist() == [exits[row].argmax()]
    return set() if exits is None else set(exits.argmax(dim=1).tolist())


@pytest.mark.parametrize("name", ["rdi_net", "three_options", "skipnet", "blockdrop", "fixed_path", "static"])
def test_one_graph_decides_as_the_masked_network(name: str, tmp_path: Path) -> None:
    network, images = network_of(*CASES[name]), strategies.images(COUNT, 1, size=16)
    write_onnx_if(exportable_of(network, images), tmp_path / "net.onnx")
    assert_same(tmp_path / "net.onnx", network, images, None, "onnxruntime")


@pytest.mark.parametrize("runtime", [pytest.param("openvino", marks=pytest.mark.slow), "onnxruntime"])
def test_images_skip_units_and_leave(runtime: str, tmp_path: Path) -> None:
    model = SMALL | {"exits": {"at": ["layer1", "layer2"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    rule, path = rule_for(network, images, "margin"), tmp_path / "net.onnx"
    said = write_onnx_if(exportable_of(network, images, rule, num_segments=9), path)
    assert said.startswith("8 decisions")
    assert len(assert_same(path, network, images, rule, runtime)) >= 2
    onnx.checker.check_model(str(path), full_check=True)
    (entry,) = onnx.load(path).metadata_props
    metadata = json.loads(entry.value)
    assert entry.key == "sidestep" and metadata["temperatures"] == list(rule.temperatures or ())
    assert metadata["input"]["size"] == [16, 16]


def test_exits_are_nested(tmp_path: Path) -> None:
    network, images = shared_exit_network("msdnet"), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "entropy")
    write_onnx_if(exportable_of(network, images, rule), tmp_path / "net.onnx")
    assert len(assert_same(tmp_path / "net.onnx", network, images, rule, "onnxruntime")) >= 2
