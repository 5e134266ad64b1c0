"""A folder of segments is served: at every budget it answers what its own runner says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import sidestep
from sidestep.data.preparation import pixels_of
from sidestep.errors import ServeError
from sidestep.plan.format import preparation_of
from sidestep.runs.export import served
from sidestep.runs.run_folder import open_run
from sidestep.serve import served_model
from sidestep.targets import read_segments
from tests.serve.served import app_of, asking, said
from tests.serve.test_app import encoded, pictures, serving
from tests.targets.segment_folders import runner


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(run, tmp_path_factory.mktemp("segments") / "run"))
    sidestep.calibrate(run, sidestep.ExitBudget(fraction=0.9, scale=False))
    return sidestep.export_run(run, to="onnx").path


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_segments_are_served_as_their_runner_says(
    folder: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_segments, "RUNTIMES", (runtime,))
    app, alone = app_of(folder, f"other={folder}", deadline_ms=60_000), runner(folder)
    preparation = preparation_of(alone.route["input"])
    assert preparation is not None
    pixels = np.stack([pixels_of(picture, preparation) for picture in pictures(6)])
    images = np.stack([alone.pixels(each) for each in pixels])

    async def talk(client: httpx.AsyncClient) -> tuple[Any, list[Any]]:
        metadata = (await client.get("/v2/models/run")).json()
        answers = []
        for level in metadata["parameters"]["budgets"]:
            asked = asking(encoded(6), "BYTES", [6], budget=level["budget"])
            asked["outputs"] = [{"name": name} for name in ("probabilities", "exit", "path", "macs", "label")]
            answers.append(said(await client.post("/v2/models/run/infer", json=asked)))
            again = asking(images.flatten().tolist(), "FP32", list(images.shape), budget=level["budget"])
            same = said(await client.post("/v2/models/other/infer", json=again))
            assert same["exit"] == answers[-1]["exit"]
        return metadata, answers

    metadata, answers = serving(app, talk)
    assert metadata["platform"] == f"sidestep_{runtime}"
    budgets = metadata["parameters"]["budgets"]
    levels = served(open_run(folder.parent, "best")).levels
    assert [level["macs"] for level in budgets] == [level.macs for level in levels]
    assert len({str(answer["exit"]) for answer in answers}) > 1
    for level, answer in zip(budgets, answers, strict=True):
        wanted = alone(images, budget=level["budget"] + 1e-6)
        found = np.reshape(answer["probabilities"], (6, -1))
        np.testing.assert_allclose(found, wanted.probabilities, atol=1e-4)
        assert answer["exit"] == wanted.exits.tolist() and answer["path"] == wanted.options.flatten().tolist()
        assert answer["macs"] == pytest.approx(wanted.macs.tolist())
        assert answer["label"] == [alone.classes[index] for index in wanted.probabilities.argmax(axis=1)]


def test_what_an_older_export_did_not_say_is_learnt(folder: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    manifest = json.loads((older / "manifest.json").read_text())
    for entry in manifest["additional_metadata"]["sidestep"]["budgets"]:
        rates = entry.pop("exit_rates")
        assert sum(rates) == pytest.approx(1) and len(rates) == len(entry["limits"]) + 1
    (older / "manifest.json").write_text(json.dumps(manifest))
    (model,) = served_model.open_models([older], served_model.ServeSettings())
    assert model.name == "older" and model.ladder.rates.tolist() == [[1 / 3] * 3] * len(model.ladder.rungs)


def test_segments_have_no_bfloat16(folder: Path) -> None:
    with pytest.raises(ServeError, match="segments are float32; serve the run or a plan"):
        app_of(folder, precision="bfloat16")
