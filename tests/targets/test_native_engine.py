"""Runs in the native engine: the same report as masked evaluation, beside it in the bench."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sidestep
from sidestep.cli.main import main
from sidestep.errors import ExecutionError
from sidestep.runs.at_budget import ExitBudget
from sidestep.runs.recipe import from_dict
from sidestep.targets import native_engine
from sidestep.targets.run_plan import run_plan
from tests.hasty import hasten
from tests.plan.networks import network_of, plan_of

TINY: dict[str, Any] = {
    "name": "tiny",
    "method": {
        "name": "rdi_net",
        "router": {"dim": 8, "initial_rates": [0.5] * 3},
        "gate_mode": "hard",
        "cost_weight": 0,
    },
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 1000, "crop_padding": 1, "flip": False},
    "training": {"phases": [{"name": "joint", "epochs": 2, "lr": 0.05}], "batch_size": 32},
}

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("sidestep_engine") is None,
    reason="SIDESTEP-ENGINE MISSING: pip install ./engine",
)


def train(folder: Path, **changes: Any) -> Path:
    return sidestep.train(from_dict(TINY | changes), folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"))


def assert_same(run: Path, **settings: Any) -> None:
    masked = sidestep.evaluate(run, execution="masked", **settings).as_dict()
    native = sidestep.evaluate(run, execution="engine", precision="float32", **settings).as_dict()
    assert native.pop("execution") == "engine" and masked.pop("execution") == "masked"
    masked.pop("exit_accuracies"), native.pop("exit_accuracies")  # all exits against those that were asked
    for key, value in masked.items():
        if isinstance(value, list):
            np.testing.assert_allclose(native[key], value, atol=1e-9)
        else:
            assert native[key] == pytest.approx(value), key


@needs_engine
def test_reports_equal_those_of_masked_evaluation(run: Path) -> None:
    assert_same(run)
    assert sidestep.evaluate(run, execution="engine").num_images == 297


@needs_engine
@pytest.mark.slow
def test_static_networks_and_fixed_paths_run_too(tmp_path: Path) -> None:
    assert_same(train(tmp_path / "static", method={"name": "static"}))
    assert_same(train(tmp_path / "fixed", method={"name": "fixed_path", "path": "101"}))


@needs_engine
def test_gates_by_certainty_decide_as_they_do_in_evaluation(tmp_path: Path) -> None:
    method = {"name": "certainty", "shares": [1, 0.6, 0.3]}
    assert_same(train(tmp_path, method=method, model={"name": "cifar_resnet8", "exits": {"at": ["layer1"]}}))


@needs_engine
def test_gates_by_share_decide_as_they_do_in_evaluation(tmp_path: Path) -> None:
    method = {"name": "rdi_net", "router": {"dim": 8}, "gate_mode": "share", "target": 0.5}
    run = train(tmp_path, method=method)
    assert_same(run)
    assert 0.2 < np.mean(sidestep.evaluate(run, execution="engine").keep_rates) < 0.8


@needs_engine
def test_images_leave_at_exits(tmp_path: Path) -> None:
    exits = {"at": ["layer1", "layer2"], "width": 4}
    run = train(tmp_path, model=TINY["model"] | {"exits": exits}, method={"name": "static"})
    sidestep.calibrate(run, ExitBudget(fraction=0.7))
    masked = sidestep.evaluate(run, execution="cascade").as_dict()
    native = sidestep.evaluate(run, execution="engine", precision="float32").as_dict()
    for key in ("accuracy", "gflops", "exit_rates", "num_paths", "executed_mean"):
        assert native[key] == pytest.approx(masked[key], rel=1e-4), key


@needs_engine
@pytest.mark.slow
def test_the_bench_times_the_engine(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    arguments = ["bench", str(run), "--batch-sizes", "1,4", "--seconds", "0", "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = {(row["precision"], row["batch_size"]) for row in rows if row["runtime"] == "engine"}
    assert {("float32", 1), ("float32", 4)} <= found


@needs_engine
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--execution", "engine", "--precision", "half"],
            "precision must be one of auto, float32, bfloat16",
        ),
        (["--execution", "engine", "--decisions", "sampled"], "the engine knows arg-max decisions alone"),
        (["--precision", "float32"], "precision is the engine's alone"),
    ],
)
def test_wrong_settings_are_refused(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_engine_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_engine, "engine_installed", lambda: False)
    with pytest.raises(ExecutionError, match=r"sidestep-engine is not installed; `pip install \./engine`"):
        sidestep.evaluate(run, execution="engine")


@needs_engine
def test_an_engine_older_than_sidestep_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sidestep_engine

    monkeypatch.delattr(sidestep_engine, "available_processors")
    with pytest.raises(ExecutionError, match=r"sidestep-engine must be as new as sidestep"):
        sidestep.evaluate(run, execution="engine")


@needs_engine
def test_an_engine_that_does_not_know_the_version_of_a_plan_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sidestep_engine

    def refuse(content: bytes) -> None:
        raise sidestep_engine.PlanError("it has version 2 and this engine reads version 1")

    monkeypatch.delattr(sidestep_engine, "NEWEST_VERSION")
    monkeypatch.setattr(sidestep_engine, "parse_plan", refuse)
    with pytest.raises(ExecutionError, match=r"sidestep-engine must be as new as sidestep"):
        native_engine.engine_of(b"")


@needs_engine
def test_the_engine_has_no_more_threads_than_there_are_processors_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sidestep_engine

    monkeypatch.setattr(sidestep_engine, "available_processors", lambda: 3)
    plan = plan_of(network_of({"name": "static"}, {"name": "cifar_resnet8"})).as_bytes()
    for torch_has, wanted in ((1, 1), (16, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda torch_has=torch_has: torch_has)
        assert native_engine.engine_of(plan).num_threads == wanted


@needs_engine
def test_a_plan_runs_on_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # short names do not wrap in tables
    main(["export", str(run), "--out", "a.plan"])
    pictures = ["grey.png", "wide.jpg"]
    Image.new("L", (16, 16), 120).save(pictures[0])
    Image.effect_noise((60, 40), 80).convert("RGB").save(pictures[1])
    capsys.readouterr()
    assert main(["run", "a.plan", *pictures, "--json", "--precision", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found] == pictures
    network = sidestep.load(run)
    mean, std = from_dict(TINY).data.mean, from_dict(TINY).data.std
    pixels = (120 / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        output = network(pixels.expand(1, 3, 16, 16))
    assert found[0]["label"] == str(output.logits.argmax().item())
    assert found[0]["probability"] == pytest.approx(output.logits.softmax(1).max().item(), rel=1e-4)
    assert found[0]["executed"] == output.decisions.execution().sum().item() and found[0]["num_units"] == 3
    assert main(["run", "a.plan", *pictures]) == 0
    assert "wide.jpg" in capsys.readouterr().out


@needs_engine
def test_a_plan_without_units_runs_on_pictures(tmp_path: Path) -> None:
    model = {"name": "msdnet", "num_scales": 2, "blocks": 2, "base": 1, "step": 1, "channels": 2, "growth": 2}
    model |= {"gr_factor": [1, 2], "bn_factor": [1, 2]}
    data, training = TINY["data"] | {"limit": 64}, TINY["training"] | {"max_steps": 2}
    run = train(tmp_path, method={"name": "msdnet"}, model=model, data=data, training=training)
    sidestep.calibrate(run, ExitBudget(fraction=0.9))
    sidestep.export_run(run, tmp_path / "a.plan")
    Image.new("L", (16, 16), 120).save(tmp_path / "grey.png")
    (found,) = run_plan(tmp_path / "a.plan", [tmp_path / "grey.png"], precision="float32")
    assert (found.executed, found.num_units) == (0, 0)
    assert 0 < found.fraction <= 1


@needs_engine
def test_files_that_are_none_get_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert main(["run", str(tmp_path / "no.plan"), str(text)]) == 2
    assert "must be a file that can be read" in capsys.readouterr().err
    main(["export", str(run), "--out", str(tmp_path / "a.plan")])
    assert main(["run", str(tmp_path / "a.plan"), str(text)]) == 2
    assert "text.png' must be an image that Pillow can decode" in capsys.readouterr().err
    assert main(["run", str(text), str(text)]) == 2
    assert "the engine cannot run this network" in capsys.readouterr().err
