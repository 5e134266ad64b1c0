"""Archives of torch.export: loaded, and run by the runner, against masked PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sidestep.targets.torch_segments import write_torch
from tests import strategies
from tests.doubles import shared_exit_network
from tests.marks import exhaustive_where
from tests.plan.networks import network_of
from tests.plan.test_cascades import INPUT, NARROW, WIDE, cascade, static
from tests.plan.test_network import CASES, RDI_NET
from tests.targets.segment_folders import exportable_of, runner
from tests.targets.test_segments import COUNT, assert_same, rule_for


def test_archives_decide_as_the_masked_network(tmp_path: Path) -> None:
    model = {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "entropy")
    write_torch(exportable_of(network, images, rule), tmp_path / "out")
    answer = assert_same(tmp_path / "out", network, images, rule, "torch")
    assert len(set(answer.exits.tolist())) == 2
    graphs = sorted((tmp_path / "out" / "segments").glob("*.pt2"))
    assert {path.stem for path in graphs} >= {"segment_0", "execute_1", "skip_1"}
    program = torch.export.load(tmp_path / "out" / "segments" / "segment_0.pt2")
    assert len(program.module()(images)) == len(program.module()(images[:1])) >= 2
    with pytest.raises(ValueError, match="must hold graphs for openvino, and has others"):
        runner(tmp_path / "out", "openvino")(images.numpy())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_archives_of_every_kind(name: str, tmp_path: Path) -> None:
    network, images = network_of(*CASES[name]), strategies.images(COUNT, 1, size=16)
    write_torch(exportable_of(network, images, num_segments=3), tmp_path / "out")
    assert_same(tmp_path / "out", network, images, None, "torch")


@pytest.mark.parametrize(
    "criterion",
    [
        pytest.param("confidence", marks=pytest.mark.slow),
        *exhaustive_where(lambda name: True, ["margin", "patience", "agreement"]),
    ],
)
def test_archives_of_exits_and_members(criterion: str, tmp_path: Path) -> None:
    network = cascade([static(8, 8), static(14, 14), static(20, 3)], [NARROW, WIDE, INPUT], "probs")
    for place, each in enumerate((shared_exit_network("ranet_lg"), network)):
        images = strategies.images(COUNT, 1, size=16)
        rule, folder = rule_for(each, images, criterion), tmp_path / str(place)
        write_torch(exportable_of(each, images, rule), folder)
        assert_same(folder, each, images, rule, "torch")
