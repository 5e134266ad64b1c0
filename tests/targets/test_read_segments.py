"""Folders of segments are read with distrust: what does not fit is refused in a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidestep.errors import ExecutionError, SidestepError
from sidestep.targets import read_segments
from sidestep.targets.read_segments import open_segments
from sidestep.targets.segment_folder import write_segments
from tests import strategies
from tests.plan.networks import network_of
from tests.plan.test_network import RDI_NET
from tests.targets.segment_folders import exportable_of
from tests.targets.test_segments import COUNT, rule_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {"name": "cifar_resnet8", "exits": {"at": ["layer1"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    path = tmp_path_factory.mktemp("read") / "out"
    write_segments(exportable_of(network, images, rule_for(network, images, "confidence")), path)
    return path


def other(folder: Path, place: Path, change: Callable[[Any, Any], object]) -> Path:
    """Return a folder with the same graphs and a manifest that is changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest, manifest["additional_metadata"]["sidestep"])
    place.mkdir(exist_ok=True)
    for each in ("segments", "sidestep_segments.py"):
        if not (place / each).exists():
            os.symlink(folder / each, place / each)
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def graph_of(manifest: Any) -> Any:
    return manifest["components"]["segment_0"]["variants"]["cpu"]


WRONG: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "newer": (lambda manifest, route: route.update(format=2), "a newer sidestep may know it"),
    "absolute": (
        lambda manifest, route: graph_of(manifest).update(variant_directory="/etc"),
        "graph 'segment_0' must be a file in the folder",
    ),
    "outside": (
        lambda manifest, route: graph_of(manifest)["executor_info"]["ort"].update(model_file="../../x.onnx"),
        "graph 'segment_0' must be a file in the folder",
    ),
    "archives": (
        lambda manifest, route: graph_of(manifest).update(executor_info={"torch": {"model_file": "a.pt2"}}),
        "are archives for others; serve the run itself",
    ),
    "unknown value": (
        lambda manifest, route: route["segments"][1]["branches"][1]["inputs"].append("v99"),
        "execute_1 reads what is not known",
    ),
    "no branch": (
        lambda manifest, route: route["segments"][1]["branches"].pop(),
        "a choice has several branches",
    ),
    "no end": (lambda manifest, route: route["segments"].pop(), "the last segment is the end"),
    "no number": (
        lambda manifest, route: route.update(limits=[float("nan")]),
        "limits must be finite",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told(name: str, folder: Path, tmp_path: Path) -> None:
    change, words = WRONG[name]
    with pytest.raises(ExecutionError, match=words):
        open_segments(other(folder, tmp_path / "other", change))


def test_runtimes_that_are_missing_or_fail_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(manifest: Any, route: Any) -> None:
        route["segments"][0]["branches"][0]["component"] = "skip_1"

    with pytest.raises(ExecutionError, match="onnxruntime cannot run the segments in"):
        open_segments(other(folder, tmp_path / "other", swap))
    monkeypatch.setattr(read_segments, "RUNTIMES", ("none_such",))
    with pytest.raises(ExecutionError, match="must be installed to run segments; `pip install onnxruntime`"):
        open_segments(folder)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_manifest_that_is_changed_anywhere_is_read_or_refused(
    folder: Path, tmp_path: Path, draw: st.DataObject
) -> None:
    def change(manifest: Any, route: Any) -> None:
        node: Any = draw.draw(st.sampled_from([manifest, route, route["segments"]]))
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw.draw(st.integers(0, 3)):
                node = node[key]
                continue
            if draw.draw(st.booleans()):
                node[key] = draw.draw(JUNK)
            else:
                del node[key]
            return

    place = other(folder, tmp_path / "other", change)
    told = ""
    with suppress(SidestepError):
        try:
            assert len(open_segments(place).temperatures) == 2
        except SidestepError as error:
            told = f"{error}"
            raise
    assert "\n" not in told
