"""Networks in segments, run by the runner of their folder, against masked PyTorch."""

from __future__ import annotations

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sidestep.errors import ExportError
from sidestep.networks.cascade_network import Combine
from sidestep.networks.network import DynamicNetwork
from sidestep.plan.levels import Level
from sidestep.routing.exit_rule import ExitRule, scores
from sidestep.targets.freezing import FrozenSampler, Rates, choose_frozen
from sidestep.targets.segment_folder import write_segments
from sidestep.targets.sidestep_segments import Segments
from tests import strategies
from tests.doubles import EXIT_NETWORKS, shared_exit_network
from tests.marks import slow_where
from tests.plan.networks import NUM_CLASSES, network_of
from tests.plan.test_cascades import INPUT, NARROW, cascade, routed, static
from tests.plan.test_cascades import SMALL as SMALLER
from tests.plan.test_network import CASES, RDI_NET, SMALL
from tests.targets.segment_folders import exportable_of, labels_of, runner

RUNTIMES = ("onnxruntime", "openvino")
COUNT = 24
# Of every kind one runs always; OpenVINO takes seconds to compile the graphs of one network.
QUICK = ("rdi_net", "three_options", "squeeze_excite", "skipnet", "blockdrop", "codinet", "static")
ALWAYS = {("onnxruntime", name) for name in QUICK} | {("openvino", "skipnet")}
BOTH = [
    pytest.param(name, runtime, marks=[] if (runtime, name) in ALWAYS else [pytest.mark.slow])
    for runtime in RUNTIMES
    for name in CASES
]


def name_all_classes(network: DynamicNetwork, images: torch.Tensor) -> None:
    """Set the biases of all exits so that no class is named by all images."""
    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == NUM_CLASSES]
    with torch.no_grad():
        exit_logits = network(images).exit_logits
        assert exit_logits is not None
        for head, logits in zip(sorted(heads, key=lambda each: each.in_features), exit_logits, strict=True):
            head.bias -= logits.mean(dim=0)


def rule_for(network: DynamicNetwork, images: torch.Tensor, criterion: str) -> ExitRule:
    """Return a rule by which about half of the images leave at every exit."""
    with torch.no_grad():
        everything = network(images).exit_logits
    assert everything is not None
    if criterion in ("agreement", "patience"):
        level = 1.0 if criterion == "agreement" else 2.0
        return ExitRule(thresholds=[level] * (len(everything) - 1), criterion=criterion)
    temperatures = [1.3, 0.8, 1.1, 0.9, 1.0, 1.2][: len(everything)]
    found = scores(everything, criterion, temperatures)[:-1].sort(dim=1).values
    # Between two images, so that rounding moves none.
    middle = found.shape[1] // 2
    thresholds = found[:, middle - 1 : middle + 1].mean(dim=1).tolist()
    return ExitRule(thresholds=thresholds, criterion=criterion, temperatures=temperatures)


def assert_same(
    folder: Path, network: DynamicNetwork, images: torch.Tensor, rule: ExitRule | None, runtime: str
) -> Any:
    """Assert that segments say what the masked network does, frozen as they are, for all batch sizes."""
    run, frozen = runner(folder, runtime), route_in(folder)["frozen"]
    sampler = FrozenSampler({int(unit): option for unit, option in frozen["units"].items()})
    with torch.no_grad():
        expected = network(images, sampler=sampler, rule=rule)
    answer = None
    for part in (slice(0, 1), slice(None), slice(5, 8)):
        answer = run(images[part].numpy())
        np.testing.assert_allclose(answer.logits, expected.logits[part].numpy(), atol=1e-4)
        paths = expected.decisions.paths()[part].numpy()
        if paths.shape[1] and answer.options.shape[1]:
            asked = answer.options >= 0
            assert np.array_equal(answer.options[asked], paths[asked])
        if expected.decisions.exits is not None:
            assert np.array_equal(answer.exits, expected.decisions.exits[part].argmax(dim=1).numpy())
        np.testing.assert_allclose(answer.probabilities, expected.probabilities[part].numpy(), atol=1e-4)
    return run(images.numpy())


def route_in(folder: Path) -> dict[str, Any]:
    route: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["additional_metadata"][
        "sidestep"
    ]
    return route


@pytest.mark.parametrize(("name", "runtime"), BOTH)
def test_segments_are_the_masked_network(name: str, runtime: str, tmp_path: Path) -> None:
    network, images = network_of(*CASES[name]), strategies.images(COUNT, 1, size=16)
    write_segments(exportable_of(network, images), tmp_path / "out")
    assert_same(tmp_path / "out", network, images, None, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_single_images_of_several_threads_keep_apart(runtime: str, tmp_path: Path) -> None:
    """Values of a single image lie in memory that stays, of every thread: answers are none of them."""
    model = SMALL | {"exits": {"at": ["layer1"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    name_all_classes(network, images)
    export = exportable_of(network, images, rule_for(network, images, "margin"), num_segments=4)
    write_segments(export, tmp_path / "out")
    run = runner(tmp_path / "out", runtime)
    expected = run(images.numpy())
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda image: run(image[None].numpy()), images))
    for field, answers in zip(expected._fields, zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(
            np.concatenate(answers), getattr(expected, field), atol=1e-5, err_msg=field
        )


def test_a_router_behind_a_skipped_unit_reads_no_map(tmp_path: Path) -> None:
    """It takes the means that the router before it has taken, so that skipping costs no look at the map."""
    network, images = network_of(RDI_NET, SMALL), strategies.images(COUNT, 1, size=16)
    write_segments(exportable_of(network, images, num_segments=7), tmp_path / "out")
    folder = tmp_path / "out" / "segments"
    graphs = {path.stem: onnx.load(path, load_external_data=False).graph for path in folder.glob("*.onnx")}
    ranks = {
        name: {len(port.type.tensor_type.shape.dim) for port in graph.input} for name, graph in graphs.items()
    }
    # Units 3 and 5 of six halve their map.
    skips = sorted(name for name in ranks if name.startswith("skip"))
    assert [name for name in skips if 4 in ranks[name]] == ["skip_3", "skip_5"]
    assert all(4 in ranks[name] for name in ranks if not name.startswith("skip"))
    assert not [node for graph in graphs.values() for node in graph.node if node.op_type == "Identity"]


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy", "patience", "agreement"])
@pytest.mark.parametrize("runtime", slow_where(lambda runtime: runtime == "openvino", RUNTIMES))
def test_images_leave_as_from_the_masked_network(criterion: str, runtime: str, tmp_path: Path) -> None:
    model = SMALL | {"exits": {"at": ["layer1", "layer2"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    name_all_classes(network, images)
    rule = rule_for(network, images, criterion)
    write_segments(exportable_of(network, images, rule), tmp_path / "out")
    answer = assert_same(tmp_path / "out", network, images, rule, runtime)
    assert len(set(answer.exits.tolist())) >= 2


@pytest.mark.parametrize("kind", EXIT_NETWORKS)
def test_networks_of_exits_have_a_segment_per_exit(kind: str, tmp_path: Path) -> None:
    network, images = shared_exit_network(kind), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "confidence")
    write_segments(exportable_of(network, images, rule), tmp_path / "out")
    answer = assert_same(tmp_path / "out", network, images, rule, "onnxruntime")
    assert len(set(answer.exits.tolist())) >= 2
    kinds = [segment["decision"]["kind"] for segment in route_in(tmp_path / "out")["segments"]]
    assert kinds == ["exit"] * (network.num_exits - 1) + ["end"]


@pytest.mark.parametrize("combine", ["last", "log_probs", "probs"])
def test_members_of_a_cascade_are_segments(combine: Combine, tmp_path: Path) -> None:
    network = cascade([static(8, 8), routed(14, 14), static(20, 3)], [SMALLER, NARROW, INPUT], combine)
    images = strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "confidence")
    write_segments(exportable_of(network, images, rule), tmp_path / "out")
    answer = assert_same(tmp_path / "out", network, images, rule, "onnxruntime")
    assert len(set(answer.exits.tolist())) >= 2


def test_a_budget_takes_the_thresholds_that_were_solved_for_it(tmp_path: Path) -> None:
    model = SMALL | {"exits": {"at": ["layer1", "layer2"], "width": 4}}
    network, images = network_of({"name": "static"}, model), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "margin")
    full = exportable_of(network, images).cost.full
    levels = [
        Level(macs=share * full, accuracy=share, exit_rates=[1.0, 0.0, 0.0], thresholds=thresholds)
        for share, thresholds in (
            (0.3, [-1.0, 2.0]),
            (0.6, list(rule.thresholds)),
            (0.9, [math.inf, math.inf]),
        )
    ]
    export = replace(exportable_of(network, images, rule), levels=levels)
    write_segments(export, tmp_path / "out")
    run = runner(tmp_path / "out")
    assert set(run(images.numpy(), budget=0.3).exits.tolist()) == {0}
    assert set(run(images.numpy(), budget=0.89).exits.tolist()) == {0, 1, 2}
    assert np.array_equal(run(images.numpy(), budget=0.6).exits, run(images.numpy()).exits)
    assert set(run(images.numpy(), budget=1.0).exits.tolist()) == {2}
    with pytest.raises(ValueError, match=r"budget must be .* got 0\.2; 0\.300 is the least here"):
        run(images.numpy(), budget=0.2)


def test_freezing_is_measured_on_validation_images(tmp_path: Path) -> None:
    """Six units in three segments: four are frozen, and the masked network with the same ones agrees."""
    network, images = network_of(RDI_NET, SMALL), strategies.images(COUNT, 1, size=16)
    export = exportable_of(network, images, num_segments=3)
    said = write_segments(export, tmp_path / "out")
    frozen, labels = route_in(tmp_path / "out")["frozen"], labels_of(export)
    answer = assert_same(tmp_path / "out", network, images, None, "onnxruntime")
    with torch.no_grad():
        before = network(images).logits.argmax(dim=1).numpy()
    after = answer.logits.argmax(axis=1)
    assert len(frozen["units"]) == 4 and len(route_in(tmp_path / "out")["segments"]) == 3
    assert frozen["num_images"] == COUNT
    assert frozen["accuracy_before"] == pytest.approx((before == labels).mean())
    assert frozen["accuracy_after"] == pytest.approx((after == labels).mean())
    assert frozen["agreement"] == pytest.approx((before == after).mean())
    assert frozen["macs_after"] == pytest.approx(answer.macs.mean(), rel=0.02)
    assert f"4 units frozen: {100 * frozen['accuracy_before']:.2f} % right before" in said
    for unit, option in frozen["units"].items():
        assert set(answer.options[:, int(unit)].tolist()) == {option}


def test_one_segment_is_a_static_network(tmp_path: Path) -> None:
    model = SMALL | {"exits": {"at": ["layer1"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "confidence")
    said = write_segments(exportable_of(network, images, rule, num_segments=1), tmp_path / "out")
    assert "1 segment in 1 graphs" in said and "6 units and 1 exit frozen" in said
    answer = runner(tmp_path / "out")(images.numpy())
    expected = network(images, sampler=FrozenSampler(dict(enumerate(answer.options[0].tolist()))))
    np.testing.assert_allclose(answer.logits, expected.logits.detach().numpy(), atol=1e-4)
    assert set(answer.exits.tolist()) == {1}
    segments = Segments(tmp_path / "out", num_threads=1, share_threads=False)
    before = segments(images.numpy())
    # Worker processes get copies, which load graphs of their own.
    copy = pickle.loads(pickle.dumps(segments))
    np.testing.assert_array_equal(copy(images.numpy()).logits, before.logits)


@pytest.mark.parametrize(("rates", "count", "units", "exits"), [
    ([[0.0, 1.0], [0.5, 0.5], [0.996, 0.004]], None, {0: 1, 2: 0}, ()),
    ([[0.1, 0.9], [0.5, 0.5], [0.2, 0.8]], 2, {0: 1, 2: 1}, (0,)),
    ([[0.45, 0.55], [0.5, 0.5]], 2, {0: 1, 1: 0}, ()),
    ([[0.1, 0.9]] * 9, None, dict.fromkeys(range(3), 1), ()),
])  # fmt: skip
def test_what_decides_least_is_frozen_first(
    rates: list[list[float]], count: int | None, units: dict[int, int], exits: tuple[int, ...]
) -> None:
    left = [0.02] if exits else [0.9] if count else [0.3]
    assert choose_frozen(Rates(options=torch.tensor(rates), exits=torch.tensor(left)), count) == (
        units,
        exits,
    )


def test_weights_that_branches_share_lie_in_the_file_once(tmp_path: Path) -> None:
    network, images = network_of(RDI_NET, SMALL), strategies.images(COUNT, 1, size=16)
    write_segments(exportable_of(network, images), tmp_path / "out")
    graphs = tmp_path / "out" / "segments"
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    assert (graphs / "weights.bin").stat().st_size < 1.2 * weights
    names = {path.stem for path in graphs.glob("*.onnx")}
    assert names == set(json.loads((tmp_path / "out" / "manifest.json").read_text())["components"])
    assert {"segment_0", "execute_1", "skip_1", "execute_6", "skip_6"} <= names
    for path in graphs.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)


def test_what_cannot_be_cut_gets_a_sentence(tmp_path: Path) -> None:
    images = strategies.images(4, 1, size=16)
    network = network_of(RDI_NET, SMALL | {"exits": {"at": ["layer1"], "width": 4}})
    with pytest.raises(ExportError, match="need thresholds, and this run has none; `sidestep calibrate`"):
        write_segments(exportable_of(network, images), tmp_path / "out")
    network = network_of(RDI_NET, SMALL)
    with pytest.raises(ExportError, match="segments must be 1 or more, got 0"):
        write_segments(exportable_of(network, images, num_segments=0), tmp_path / "out")
    with pytest.raises(ExportError, match=r"there are none; give Exportable\.validation"):
        write_segments(replace(exportable_of(network, images), validation=None), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ExportError, match="must be a new or empty folder, and is not"):
        write_segments(exportable_of(network, images), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]
