"""Networks without a plan in segments: tokens and LayerNorm, against masked PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidestep.errors import ExportError
from sidestep.targets.segment_folder import write_segments
from sidestep.targets.torch_segments import write_torch
from tests import strategies
from tests.plan.networks import network_of
from tests.plan.test_network import RDI_NET
from tests.targets.segment_folders import exportable_of
from tests.targets.test_segments import COUNT, assert_same, route_in, rule_for

SIZE = (32, 32)
VIT: dict[str, Any] = {"name": "timm/test_vit"}
CONVNEXT: dict[str, Any] = {"name": "timm/test_convnext"}


@pytest.mark.parametrize(
    ("model", "runtime"),
    [
        pytest.param(VIT, "onnxruntime", marks=pytest.mark.slow),
        pytest.param(CONVNEXT, "onnxruntime", marks=pytest.mark.exhaustive),
        pytest.param(VIT, "openvino", marks=pytest.mark.exhaustive),
        pytest.param(CONVNEXT, "openvino", marks=pytest.mark.exhaustive),
    ],
)
def test_networks_without_a_plan_are_cut_too(model: dict[str, Any], runtime: str, tmp_path: Path) -> None:
    network = network_of(RDI_NET, model, SIZE)
    images = strategies.images(COUNT, 1, size=SIZE[0])
    write_segments(exportable_of(network, images, size=SIZE, num_segments=3), tmp_path / "out")
    answer = assert_same(tmp_path / "out", network, images, None, runtime)
    route = route_in(tmp_path / "out")
    assert len(route["segments"]) == 3 and len(route["frozen"]["units"]) == len(network.units) - 2
    assert answer.macs.min() < answer.macs.max()


@pytest.mark.exhaustive
@pytest.mark.parametrize("criterion", ["margin", "patience"])
def test_exits_of_networks_without_a_plan(criterion: str, tmp_path: Path) -> None:
    model = VIT | {"exits": {"at": ["blocks.1"]}}
    network = network_of(RDI_NET, model, SIZE)
    images = strategies.images(COUNT, 1, size=SIZE[0])
    rule = rule_for(network, images, criterion)
    export = exportable_of(network, images, rule, size=SIZE, num_segments=3)
    write_segments(export, tmp_path / "onnx")
    assert_same(tmp_path / "onnx", network, images, rule, "onnxruntime")
    write_torch(export, tmp_path / "torch")
    assert_same(tmp_path / "torch", network, images, rule, "torch")


def test_what_no_exporter_writes_is_refused(tmp_path: Path) -> None:
    network = network_of({"name": "act"}, {"name": "cifar_resnet8"})
    images = strategies.images(4, 1, size=16)
    with pytest.raises(ExportError, match="act and sact weigh"):
        write_segments(exportable_of(network, images), tmp_path / "out")
